"""Refusals of the reader; what it reads is compared with the plain episode in test_whole_path.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from drqn_dist.codec import decode, encode
from drqn_dist.errors import FragmentError
from drqn_dist.interfaces import EnvSpec, WindowSample
from learner.window_reader import WindowReader
from tests.learner.batches import some_windows
from tests.tiny import VECTOR, tiny_config

CONFIG = tiny_config()


def read(sample: WindowSample, spec: EnvSpec = VECTOR, **changes: Any) -> Any:
    reader = WindowReader(tiny_config(**changes), spec)
    return reader.read(sample, reader.empty(len(sample.windows)))


def changed(sample: WindowSample, **changes: Any) -> WindowSample:
    fragments = tuple(encode(replace(decode(payload, 2**20), **changes)) for payload in sample.fragments)
    return replace(sample, fragments=fragments)


def test_facts_of_the_sample_come_along() -> None:
    sample = replace(some_windows(CONFIG), population=77, inserted_steps=1234)
    batch = read(changed(sample, weight_version=5))
    assert batch.ids.tolist() == sample.ids.tolist()
    assert batch.probabilities.tolist() == sample.probabilities.tolist()
    assert (batch.population, batch.inserted_steps) == (77, 1234)
    assert set(batch.weight_versions.tolist()) == {5}


@pytest.mark.parametrize(
    "spec",
    [
        EnvSpec((4,), "float32", num_actions=4, frames_per_step=1),
        EnvSpec((3,), "uint8", num_actions=4, frames_per_step=1),
    ],
)
def test_observations_of_another_environment_are_refused(spec: EnvSpec) -> None:
    with pytest.raises(FragmentError, match=r"float32 observations of shape \(3,\), but this run's environment gives"):
        read(some_windows(CONFIG), spec)


def test_actions_of_another_environment_are_refused() -> None:
    spec = EnvSpec((3,), "float32", num_actions=2, frames_per_step=1)
    with pytest.raises(FragmentError, match="action 3, but this run's environment has 2 actions"):
        read(some_windows(CONFIG), spec)


def test_a_state_of_another_core_is_refused() -> None:
    with pytest.raises(FragmentError, match=r"stored state has shape \(1, 8\), but this run's core needs \(1, 9\)"):
        read(some_windows(CONFIG), network={"core_units": 9})
    with pytest.raises(FragmentError, match=r"stored state has shape \(1, 8\), but this run's core needs \(2, 8\)"):
        read(some_windows(CONFIG), network={"core": "lstm"})


def test_a_missing_state_is_zero() -> None:
    assert not read(changed(some_windows(CONFIG), states={})).state.any()


def test_a_corrupted_fragment_is_refused() -> None:
    sample = some_windows(CONFIG)
    first = bytearray(sample.fragments[0])
    first[-1] ^= 1
    with pytest.raises(FragmentError, match="checksum"):
        read(replace(sample, fragments=(bytes(first), *sample.fragments[1:])))


def test_a_fragment_above_the_limit_is_refused() -> None:
    with pytest.raises(FragmentError, match="exceeds the limit of 100"):
        read(some_windows(CONFIG), replay={"max_fragment_bytes": 100})


def test_a_window_without_the_fragment_of_its_first_step_is_refused() -> None:
    sample = some_windows(CONFIG)
    lost = next(w for w in sample.windows if w.unroll_start >= 8)
    moved = replace(lost, unroll_start=lost.unroll_start - 8)
    with pytest.raises(FragmentError, match=f"no fragment of the window holds its first step {moved.unroll_start}"):
        read(replace(sample, windows=(moved,), ids=sample.ids[:1], probabilities=sample.probabilities[:1]))


def test_a_buffer_that_held_other_windows_reads_like_a_new_one() -> None:
    config = tiny_config(learner={"burn_in_steps": 3, "n_step": 2})
    sample = some_windows(config)
    reader = WindowReader(config, VECTOR)
    used = reader.read(sample, reader.empty(len(sample.ids)))
    backwards = replace(sample, windows=sample.windows[::-1], ids=sample.ids[::-1].copy())
    fresh = reader.read(backwards, reader.empty(len(sample.ids)))
    reader.read(backwards, used)
    for name, value in vars(fresh).items():
        assert np.array_equal(getattr(used, name), value), name
