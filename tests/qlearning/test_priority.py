from __future__ import annotations

import numpy as np
import pytest
import torch

from drqn_dist.qlearning.priority import MIN_PRIORITY, importance_weights, mixed_priority


def test_mixes_the_largest_and_the_mean_error() -> None:
    priority = mixed_priority(torch.tensor([[1.0, -4.0, 1.0]]), torch.ones(1, 3), eta=0.9)
    assert priority.tolist() == pytest.approx([0.9 * 4 + 0.1 * (1 + 4 + 1) / 3 + MIN_PRIORITY])


def test_masked_steps_count_neither_in_the_largest_nor_in_the_mean() -> None:
    errors, mask = torch.tensor([[1.0, 3.0, 100.0, 100.0]]), torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert mixed_priority(errors, mask, 0.5).tolist() == pytest.approx([0.5 * 3 + 0.5 * 2 + MIN_PRIORITY])


@pytest.mark.parametrize(("eta", "expected"), [(1.0, 4.0), (0.0, 2.5)])
def test_eta_one_is_the_largest_and_zero_the_mean(eta: float, expected: float) -> None:
    assert mixed_priority(torch.tensor([[1.0, 4.0]]), torch.ones(1, 2), eta).item() == pytest.approx(
        expected + MIN_PRIORITY
    )


def test_no_window_gets_the_priority_zero_even_without_a_single_step() -> None:
    assert mixed_priority(torch.zeros(2, 3), torch.tensor([[1.0] * 3, [0.0] * 3]), 0.9).tolist() == pytest.approx(
        [MIN_PRIORITY] * 2
    )


def test_rare_windows_weigh_most_and_the_largest_weight_is_one() -> None:
    weights = importance_weights(np.array([0.5, 0.25, 0.125]), population=8, exponent=0.5)
    assert weights.dtype == np.float32
    assert weights.tolist() == pytest.approx([(1 / 4) ** 0.5, (1 / 2) ** 0.5, 1])


def test_uniform_windows_and_exponent_zero_weigh_alike() -> None:
    assert importance_weights(np.full(3, 1 / 7), 7, 0.6).tolist() == [1, 1, 1]
    assert importance_weights(np.array([0.9, 0.1]), 2, 0.0).tolist() == [1, 1]


def test_importance_weights_make_the_batch_unbiased_at_exponent_one() -> None:
    probabilities = np.array([0.1, 0.2, 0.7])
    weights = importance_weights(probabilities, 3, 1.0)
    assert (weights * probabilities).tolist() == pytest.approx([0.1] * 3)  # the same for each window
