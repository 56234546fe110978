"""One seed for a run, independent streams for its parts."""

from __future__ import annotations

from typing import Literal

import numpy as np

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
