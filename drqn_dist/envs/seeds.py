"""One seed of a batch becomes one seed per row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def row_seeds(seed: int, num_envs: int) -> npt.NDArray[np.int64]:
    """Seeds for the rows of a batch: int64 [num_envs], in [0, 2**31).

    Consecutive numbers would not do: row 1 of seed 0 would play the same games as row 0 of seed 1.
    """
    return (np.random.SeedSequence(seed).generate_state(num_envs) >> 1).astype(np.int64)
