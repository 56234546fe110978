"""Whether rows of a batch came back when their episodes were played again."""

import numpy as np
import numpy.typing as npt

from drqn_dist.envs.spaces import Observations
from drqn_dist.errors import EnvNotRestoredError


def check_replayed(env_id: str, through: npt.NDArray[np.bool_], shown: Observations, saved: Observations) -> None:
    """Compares where N episodes stand with where they stood.

    Args:
        through: bool [N], whether an episode took all its actions and ended where it had ended.
        shown: [N, ...], what the rows show now.
        saved: the same when they were saved.

    Raises:
        EnvNotRestoredError: with the rows that are not as they were.
    """
    same = through & (shown == saved).reshape(len(saved), -1).all(axis=1)
    if not same.all():
        raise EnvNotRestoredError(
            f"{env_id} did not come back as it was when the episodes of its rows were played again from their seeds: "
            f"rows {np.flatnonzero(~same).tolist()} of {len(same)} differ. It is not deterministic under its seed, or "
            "keeps something from one episode to the next; begin new episodes instead"
        )
