from __future__ import annotations

import math

import numpy as np
import pytest

from drqn_dist.qlearning.exploration import decayed_epsilon, epsilon_ladder


def test_equals_the_formula_of_apex_counted_from_the_other_end() -> None:
    count = 16
    apex = [0.4 ** (1 + 7 * i / (count - 1)) for i in range(count)]
    assert epsilon_ladder(0, count, count, 0.4**8, 0.4).tolist() == pytest.approx(apex[::-1])


def test_one_environment_gets_the_lowest_rung() -> None:
    assert epsilon_ladder(0, 1, 1, 0.01, 0.4).tolist() == [0.01]


def test_two_environments_get_both_ends() -> None:
    assert epsilon_ladder(0, 2, 2, 0.01, 0.4).tolist() == pytest.approx([0.01, 0.4])


def test_actors_hold_neighbouring_parts_of_one_ladder_whoever_holds_them() -> None:
    whole = epsilon_ladder(0, 12, 12, 0.01, 0.4)
    parts = [epsilon_ladder(4 * actor, 4, 12, 0.01, 0.4) for actor in range(3)]
    assert np.concatenate(parts).tolist() == whole.tolist()
    assert epsilon_ladder(4, 4, 12, 0.01, 0.4).tolist() == parts[1].tolist()  # its replacement


def test_equal_ends_are_constant_and_zero_is_greedy() -> None:
    assert epsilon_ladder(1, 2, 4, 0.3, 0.3).tolist() == [0.3, 0.3]
    assert epsilon_ladder(0, 3, 3, 0.0, 0.0).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("first", "count", "total"), [(-1, 1, 4), (3, 2, 4), (0, -1, 4)])
def test_rungs_beyond_the_ladder_are_refused(first: int, count: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"do not lie on a ladder of {total}"):
        epsilon_ladder(first, count, total, 0.01, 0.4)


RUNGS = np.array([0.01, 0.4])


def test_linear_decay_falls_from_one_to_the_rung_and_stays_there() -> None:
    assert decayed_epsilon(RUNGS, 0, "linear", 100).tolist() == [1, 1]
    assert decayed_epsilon(RUNGS, 50, "linear", 100).tolist() == [0.5, 0.5]
    assert decayed_epsilon(RUNGS, 80, "linear", 100).tolist() == pytest.approx([0.2, 0.4])
    assert decayed_epsilon(RUNGS, 10**12, "linear", 100).tolist() == [0.01, 0.4]


def test_exponential_decay_is_the_articles() -> None:
    assert decayed_epsilon(RUNGS, 0, "exponential", 30_000).tolist() == [1, 1]
    expected = [0.01 + 0.99 * math.exp(-1), 0.4 + 0.6 * math.exp(-1)]
    assert decayed_epsilon(RUNGS, 30_000, "exponential", 30_000).tolist() == pytest.approx(expected)
    assert decayed_epsilon(RUNGS, 10**12, "exponential", 30_000).tolist() == pytest.approx([0.01, 0.4])


def test_without_decay_the_rung_holds_from_the_start() -> None:
    assert decayed_epsilon(RUNGS, 0, "none", 1).tolist() == [0.01, 0.4]
