"""One seed for a run, independent streams for its parts."""

from typing import Literal

import numpy as np
import numpy.typing as npt

_PARTS = ("network", "actor", "environment", "replay", "evaluation", "learner")


def derive_seed(
    seed: int, part: Literal["network", "actor", "environment", "replay", "evaluation", "learner"], *indices: int
) -> int:
    """A seed in [0, 2^30) for one part of the run, for example actor 3 in its second incarnation.

    Hashed by NumPy's SeedSequence, so that neighbouring seeds or indices give unrelated streams. It takes no notice
    of zeros at the end: give each use of a part the same number of indices, or another first one.
    """
    entropy = [seed, _PARTS.index(part), *indices]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0]) % 2**30


EVALUATION_SEED = 1_000_003
"""Of games played after training: far from the seeds of training and its evaluations, so as not to repeat them."""


def row_seeds(seed: int, num_envs: int) -> npt.NDArray[np.int64]:
    """Seeds for the rows of a batch of environments: int64 [num_envs], in [0, 2**31).

    Consecutive numbers would not do: row 1 of seed 0 would play the same games as row 0 of seed 1.
    """
    return (np.random.SeedSequence(seed).generate_state(num_envs) >> 1).astype(np.int64)
