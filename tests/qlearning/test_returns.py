from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drqn_dist.qlearning.returns import n_step_targets
from tests.oracles import n_step_return


def targets(
    rewards: list[float], values: list[float], left: int, terminated: bool, n: int, gamma: float
) -> list[float]:
    """Of one window whose first step has `left` steps left."""
    steps_left = left - torch.arange(len(rewards))
    out: Tensor = n_step_targets(
        torch.tensor([rewards], dtype=torch.float32),
        torch.tensor([values], dtype=torch.float32),
        steps_left[None],
        torch.tensor([terminated]),
        n,
        gamma,
    )
    return [float(x) for x in out[0]]


def test_three_steps_are_summed_and_the_fourth_observation_is_bootstrapped() -> None:
    assert targets([1, 2, 4, 8, 0], [0, 0, 0, 100, 200], 99, True, 3, 0.5) == [
        1 + 0.5 * 2 + 0.25 * 4 + 0.125 * 100,
        2 + 0.5 * 4 + 0.25 * 8 + 0.125 * 200,
    ]


def test_bootstraps_n_steps_on_and_not_one_step_on() -> None:
    assert targets([0, 0, 0], [7, 7, 100], 99, False, 2, 1.0) == [100]


def test_a_termination_ends_the_sum_and_is_worth_nothing_after() -> None:
    assert targets([1, 2, 0, 0, 0], [9, 9, 9, 9, 9], 2, True, 3, 0.5) == [1 + 0.5 * 2, 2]


def test_a_truncation_ends_the_sum_and_bootstraps_from_the_final_observation() -> None:
    assert targets([1, 2, 0, 0, 0], [9, 9, 100, 9, 9], 2, False, 3, 0.5) == [1 + 0.5 * 2 + 0.25 * 100, 2 + 0.5 * 100]


def test_an_end_exactly_n_steps_on_counts_and_one_step_later_does_not() -> None:
    assert targets([1, 1, 0], [9, 9, 100], 2, True, 2, 1.0) == [2]
    assert targets([1, 1, 0], [9, 9, 100], 3, True, 2, 1.0) == [2 + 100]


def test_rows_do_not_mix() -> None:
    rewards, values = torch.tensor([[1.0, 2, 0], [10, 20, 0]]), torch.tensor([[3.0, 4, 5], [30, 40, 50]])
    left, terminated = torch.full((2, 3), 9), torch.tensor([False, False])
    assert n_step_targets(rewards, values, left, terminated, 1, 1.0).tolist() == [[1 + 4, 2 + 5], [10 + 40, 20 + 50]]


def test_gamma_zero_is_the_reward_alone() -> None:
    assert targets([1, 2, 4], [9, 9, 9], 99, False, 2, 0.0) == [1]
    assert targets([1, 0, 0], [9, 9, 9], 1, False, 2, 0.0) == [1]


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    steps=st.integers(1, 12),
    window=st.integers(1, 8),
    start=st.integers(0, 11),
    n=st.integers(1, 6),
    gamma=st.sampled_from([0.0, 0.3, 0.99, 1.0]),
    terminated=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_equals_brute_force(
    steps: int, window: int, start: int, n: int, gamma: float, terminated: bool, seed: int
) -> None:
    start %= steps
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=steps).tolist(), rng.normal(size=steps + 1).tolist()
    width = window + n
    padded_rewards = (rewards[start:] + [0.0] * width)[:width]
    padded_values = (values[start:] + [1e6] * width)[:width]  # padding must never be bootstrapped
    out = targets(padded_rewards, padded_values, steps - start, terminated, n, gamma)
    for k in range(min(window, steps - start)):
        expected = n_step_return(rewards, dict(enumerate(values)), start + k, n, gamma, terminated)
        assert out[k] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("columns", "n"), [(3, 0), (3, 3), (3, 4)])
def test_refuses_windows_without_a_tail(columns: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"n = {n}|n must be at least 1, got {n}"):
        targets([0.0] * columns, [0.0] * columns, 9, True, n, 0.9)


def test_refuses_values_of_another_shape() -> None:
    with pytest.raises(ValueError, match="must both be"):
        targets([0.0] * 3, [0.0] * 4, 9, True, 1, 0.9)
