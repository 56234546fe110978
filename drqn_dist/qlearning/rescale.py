"""Value rescaling h and its inverse (Pohlen et al. 2018, arXiv:1805.11593; used by R2D2)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-3
"""Keeps h⁻¹ Lipschitz (Pohlen et al. 2018, Proposition A.2)."""


@dataclass(frozen=True)
class ValueTransform:
    """A monotone function of values and its inverse, both elementwise on float32 tensors."""

    apply: Callable[[Tensor], Tensor]
    invert: Callable[[Tensor], Tensor]


def _h(x: Tensor) -> Tensor:
    # sqrt(|x| + 1) - 1 by its conjugate, which keeps its digits near 0 in float32.
    return x / (torch.sqrt(x.abs() + 1.0) + 1.0) + EPSILON * x


def _h_inverse(y: Tensor) -> Tensor:
    # u = sqrt(|x| + 1) solves ε u² + u = |y| + 1 + ε. With s = sqrt((1 + 2ε)² + 4ε|y|), u - 1 = 2|y| / (s + 1 + 2ε)
    # and |x| = u² - 1 = (u - 1)(u + 1); no step subtracts nearly equal numbers.
    s = torch.sqrt((1.0 + 2.0 * EPSILON) ** 2 + 4.0 * EPSILON * y.abs())
    u_minus_1 = 2.0 * y.abs() / (s + 1.0 + 2.0 * EPSILON)
    return y.sign() * u_minus_1 * (u_minus_1 + 2.0)


RESCALED = ValueTransform(_h, _h_inverse)
IDENTITY = ValueTransform(lambda x: x, lambda y: y)


def value_transform(rescale: bool) -> ValueTransform:
    """h(x) = sign(x)(√(|x| + 1) - 1) + εx when `rescale`, else the identity."""
    return RESCALED if rescale else IDENTITY
