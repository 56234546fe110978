"""One snapshot per version, for whoever asks."""

from __future__ import annotations

from drqn_dist.interfaces import WeightSnapshot
from drqn_dist.network.q_network import QNetwork
from learner.outbox import Array, Outbox

_UNDER_WAY = 2


class WeightPublisher:
    """Keeps the newest snapshot. `publish` and `collect` are called by the learner, `latest` from any thread: the
    snapshot is replaced as a whole and never changed."""

    pending = False
    """It always answers at once."""

    def __init__(self) -> None:
        self._snapshot: WeightSnapshot | None = None
        self._outbox = Outbox(_UNDER_WAY)

    def publish(self, network: QNetwork, version: int, wait: bool = False) -> None:
        """Offers these weights as soon as they have left the device, or before it returns if it is to wait."""

        def take(vector: Array) -> None:
            self._snapshot = WeightSnapshot(version, vector)

        self._outbox.post(network.flat(), take)
        if wait:
            self._outbox.flush()

    def collect(self) -> None:
        """Offers what has left the device by now."""
        self._outbox.collect()

    def latest(self, known_version: int) -> WeightSnapshot | None:
        """The newest snapshot if it is newer than `known_version` (-1: none is known), else None."""
        snapshot = self._snapshot
        return snapshot if snapshot is not None and snapshot.version > known_version else None
