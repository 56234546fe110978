from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from drqn_dist.qlearning.rescale import value_transform
from tests.oracles import h, h_inverse

TINY = [1e-30, 1e-12, 1e-7, 1e-4]
HUGE = [1e3, 1e6, 1e10, 1e15]
VALUES = [0.0, *TINY, 0.1, 1.0, 2.0, 50.0, *HUGE]
BOTH_SIGNS = torch.tensor([*VALUES, *(-v for v in VALUES)])


def test_h_of_three_is_one_and_a_bit() -> None:
    assert value_transform(True).apply(torch.tensor([3.0, -3.0])).tolist() == pytest.approx([1.003, -1.003])


@pytest.mark.parametrize("rescale", [True, False])
def test_the_round_trip_is_exact_at_zero_and_close_at_tiny_and_huge_values_both_ways(rescale: bool) -> None:
    transform = value_transform(rescale)
    torch.testing.assert_close(transform.invert(transform.apply(BOTH_SIGNS)), BOTH_SIGNS, rtol=2e-5, atol=0)
    moderate = BOTH_SIGNS[BOTH_SIGNS.abs() < 1e9]  # h⁻¹ grows as a square
    torch.testing.assert_close(transform.apply(transform.invert(moderate)), moderate, rtol=2e-5, atol=0)


def test_equals_the_published_formula() -> None:
    transform = value_transform(True)
    moderate = [x for x in BOTH_SIGNS.tolist() if abs(x) >= 1e-4 or x == 0]  # the formula as printed cancels below
    assert transform.apply(torch.tensor(moderate)).tolist() == pytest.approx([h(x) for x in moderate], rel=1e-4)
    values = [y for y in moderate if abs(y) <= 1e6]
    assert transform.invert(torch.tensor(values)).tolist() == pytest.approx([h_inverse(y) for y in values], rel=1e-4)


def test_both_are_odd_and_grow() -> None:
    for function in (value_transform(True).apply, value_transform(True).invert):
        x = torch.linspace(-100, 100, 2001)
        y = function(x)
        assert (y.diff() > 0).all()
        torch.testing.assert_close(function(-x), -y)


def test_gradients_are_finite_at_zero() -> None:
    x = torch.zeros(1, requires_grad=True)
    value_transform(True).apply(x).sum().backward()  # type: ignore[no-untyped-call]
    gradient: Tensor | None = x.grad
    assert gradient is not None
    assert gradient.item() == pytest.approx(0.5 + 1e-3)


def test_switched_off_it_is_the_identity() -> None:
    transform = value_transform(False)
    assert transform.apply(BOTH_SIGNS).tolist() == transform.invert(BOTH_SIGNS).tolist() == BOTH_SIGNS.tolist()
    assert math.isinf(transform.apply(torch.tensor(math.inf)).item())
