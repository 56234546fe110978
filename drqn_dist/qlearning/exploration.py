"""Exploration rates: a geometric ladder over all environments of the run, and an optional decay to it."""

from typing import Literal

import numpy as np
import numpy.typing as npt

GREEDY_EPSILON = 0.05
"""Once games have ended that explored no more than this, only such count for a run's training return: others say more
about random moves than about the policy. The ladder is geometric, so in most runs several environments play them."""


def epsilon_ladder(first: int, count: int, total: int, low: float, high: float) -> npt.NDArray[np.float64]:
    """Rungs `first` … `first + count - 1` of a ladder of `total` rungs from `low` to `high`.

    ε_i = low · (high / low)^(i / (total - 1)). Ape-X's ε_i = 0.4^(1 + 7 i / (N - 1)) is this ladder with
    high = 0.4 and low = 0.4^8, counted from the other end. A run with one environment gets `low`.
    The rung depends on the environment's place in the run alone, so a replaced actor explores as the one before it.

    Returns:
        float64 [count]
    """
    if not 0 <= first <= first + count <= total:
        raise ValueError(f"rungs {first}..{first + count - 1} do not lie on a ladder of {total}")
    if total == 1 or low == high:
        return np.full(count, low)
    rung = np.arange(first, first + count) / (total - 1)
    return np.asarray(low * (high / low) ** rung)


def decayed_epsilon(
    rungs: npt.NDArray[np.float64],
    agent_steps: int,
    decay: Literal["none", "linear", "exponential"],
    decay_steps: int,
) -> npt.NDArray[np.float64]:
    """Rates at `agent_steps` of the whole run: 1 at the start, `rungs` in the end.

    linear: max(rung, 1 - step / decay_steps); exponential: rung + (1 - rung) · exp(-step / decay_steps).

    Returns:
        float64 [len(rungs)]
    """
    if decay == "linear":
        return np.maximum(rungs, 1.0 - agent_steps / decay_steps)
    if decay == "exponential":
        return np.asarray(rungs + (1.0 - rungs) * np.exp(-agent_steps / decay_steps))
    return rungs
