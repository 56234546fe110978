"""Priorities of windows and importance weights of samples."""

import numpy as np
import numpy.typing as npt
from torch import Tensor

MIN_PRIORITY = 1e-3
"""Added to every priority, so that a window with vanishing errors can still be drawn (PER, section 3.3)."""


def mixed_priority(td_errors: Tensor, mask: Tensor, eta: float) -> Tensor:
    """η max|δ| + (1 - η) mean|δ| over the unmasked steps of each window (R2D2, section 2.3).

    Args:
        td_errors: float32 [B, T].
        mask: float32 [B, T], 1 on the steps that count; a row without any gets MIN_PRIORITY.
        eta: weight of the largest error.

    Returns:
        float32 [B], at least MIN_PRIORITY.
    """
    magnitude = td_errors.abs() * mask
    mean = magnitude.sum(1) / mask.sum(1).clamp(min=1.0)
    return eta * magnitude.amax(1) + (1.0 - eta) * mean + MIN_PRIORITY


def importance_weights(
    probabilities: npt.NDArray[np.float64], population: int, exponent: float
) -> npt.NDArray[np.float32]:
    """w_i = (N P_i)^-β / max_j w_j (PER, section 3.4).

    Args:
        probabilities: float64 [..., B], with which each window of a batch was drawn.
        population: N, windows that could have been drawn.
        exponent: β; 0 gives ones.

    Returns:
        float32 [..., B] in (0, 1], 1 for the largest of each batch.
    """
    weights = (population * probabilities) ** -exponent
    return np.asarray(weights / weights.max(-1, keepdims=True), dtype=np.float32)
