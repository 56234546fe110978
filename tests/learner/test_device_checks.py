"""The checks of tests/gpu on the CPU."""

from __future__ import annotations

from typing import Any

import pytest

from tests.learner import device_checks
from tests.learner.preset_cases import NAMES, scaled_case

PLACES = ["device", "host"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_into_the_store_is_what_the_next_update_reads(name: str) -> None:
    device_checks.check_writes_are_seen(scaled_case(name), "cpu")


@pytest.mark.parametrize("name", NAMES)
def test_a_learner_that_was_stopped_goes_on_as_if_nothing_had_happened(name: str) -> None:
    device_checks.check_stop_and_resume(scaled_case(name), "cpu")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_weights_priorities_and_statistics_leave_the_device(name: str, place: Any) -> None:
    device_checks.check_everything_leaves_the_device(scaled_case(name), "cpu", place)


@pytest.mark.parametrize("name", ["r2d2", "article", "pong-cpu"])
def test_weights_set_from_outside_are_those_that_the_next_update_trains(name: str) -> None:
    device_checks.check_new_weights_act_at_once(scaled_case(name), "cpu")
