"""What the learner does on a GPU, against the CPU and against itself without a graph: `make gpu-test`.

The checks are those that tests/learner runs on the CPU; only the device differs, and here presets have their own
shapes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from tests.learner import device_checks
from tests.learner.device_checks import trained
from tests.learner.preset_cases import (
    NAMES,
    Case,
    check_same_updates,
    distance,
    eager,
    graphed,
    learner_on,
    real_case,
    scaled_case,
)

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; none is here"),
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning"),  # a prototype, says torch
]
PLACES = ["device", "host"]
ROUNDING = 1e-3
"""How far two runs of the same updates on a GPU may be apart after some of them."""


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """Products in full fp32, and all CPU cores for the learner that a GPU is compared with."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    torch.set_num_threads(1)


@cache
def case_of(name: str) -> Case:
    """With its own shapes; what the CPU computes beside it uses all cores."""
    case = real_case(name)
    learner = replace(case.config.learner, torch_threads=os.cpu_count() or 1)
    return replace(case, config=replace(case.config, learner=learner))


@pytest.mark.parametrize("name", NAMES)
def test_an_update_without_a_graph_is_that_of_the_cpu(name: str) -> None:
    case = case_of(name)
    check_same_updates(case, learner_on(case, "cuda"), eager, learner_on(case, "cpu"), eager, loss=1e-6, gradient=1e-4)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_a_graph_does_what_the_same_function_does_without_one(name: str, place: Any) -> None:
    case = case_of(name)
    mine, other = learner_on(case, "cuda", place), learner_on(case, "cuda", place)
    check_same_updates(case, mine, graphed, other, eager, loss=1e-6, gradient=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_is_right_in_the_precision_of_the_preset_too(name: str) -> None:
    case = case_of(name)
    case = replace(case, config=replace(case.config, network=replace(case.config.network, precision="auto")))
    check_same_updates(
        case, learner_on(case, "cuda"), graphed, learner_on(case, "cuda"), eager, loss=1e-3, gradient=1e-2
    )


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_an_update_never_waits_for_the_gpu(name: str, place: Any) -> None:
    case = case_of(name)
    learner_config = replace(
        case.config.learner, publish_period_updates=2, target_period_updates=3, learning_rate_halving_updates=10
    )
    learner = learner_on(replace(case, config=replace(case.config, learner=learner_config)), "cuda", place)
    learner.update()  # records the graph, which waits
    learner.update()
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(6):  # fewer than may be under way
            learner.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    learner.save()
    assert learner.state.updates == 8


@pytest.mark.parametrize("name", NAMES)
def test_the_function_that_is_recorded_never_waits_either(name: str) -> None:
    case = case_of(name)
    learner = learner_on(case, "cuda")
    batch = learner.feed.next()
    places, weights = batch.places.cuda(), batch.weights.cuda()
    learner.step._train(places, weights, None)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        learner.step._train(places, weights, None)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_into_the_store_between_two_runs_is_what_the_next_one_reads(name: str) -> None:
    device_checks.check_writes_are_seen(scaled_case(name), "cuda", ROUNDING)
    device_checks.check_writes_are_seen(case_of(name), "cuda", ROUNDING)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_a_learner_that_was_stopped_goes_on_as_if_nothing_had_happened(name: str, place: Any) -> None:
    device_checks.check_stop_and_resume(scaled_case(name), "cuda", place, ROUNDING)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_weights_priorities_and_statistics_leave_the_gpu(name: str, place: Any) -> None:
    device_checks.check_everything_leaves_the_device(scaled_case(name), "cuda", place)


@pytest.mark.parametrize("name", NAMES)
def test_weights_set_from_outside_are_those_that_the_next_run_trains(name: str) -> None:
    device_checks.check_new_weights_act_at_once(scaled_case(name), "cuda", ROUNDING)


@pytest.mark.parametrize("place", PLACES)
def test_a_graph_is_recorded_while_the_feeding_thread_goes_on(place: Any) -> None:
    for _ in range(5):
        case = scaled_case("r2d2")
        threaded, plain = learner_on(case, "cuda", place, threaded=True), learner_on(case, "cuda", place)
        for _ in range(10):
            threaded.update()
            plain.update()
        threaded.close()
        assert distance(trained(threaded), trained(plain)) <= ROUNDING


def test_recording_the_graph_trains_nothing() -> None:
    case = scaled_case("r2d2")
    learner = learner_on(case, "cuda")
    before = trained(learner)
    learner.step._capture(learner.feed.next())
    torch.cuda.synchronize()
    assert distance(trained(learner), before) == 0.0
