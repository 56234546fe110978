"""One snapshot per version, for whoever asks."""

from drqn_dist.interfaces import WeightSnapshot
from drqn_dist.network.q_network import QNetwork
from learner.outbox import Array, Outbox


class WeightPublisher:
    """Keeps the newest snapshot. `publish` is called by the learner, `latest` from any thread: the snapshot is replaced
    as a whole and never changed."""

    pending = False
    """It always answers at once."""

    def __init__(self) -> None:
        self._snapshot: WeightSnapshot | None = None

    def offer(self, snapshot: WeightSnapshot) -> None:
        """Offers weights that were published before."""
        self._snapshot = snapshot

    def publish(self, network: QNetwork, version: int, outbox: Outbox | None = None) -> None:
        """Offers these weights.

        Args:
            outbox: sends them without waiting for the device, behind the results of the update that made them: if that
                diverged, they are never offered.
        """

        def take(vector: Array) -> None:
            self._snapshot = WeightSnapshot(version, vector)

        if outbox is None:
            take(network.to_vector())
        else:
            outbox.post(network.flat(), take)

    def latest(self, known_version: int) -> WeightSnapshot | None:
        """The newest snapshot if it is newer than `known_version` (-1: none is known), else None."""
        snapshot = self._snapshot
        return snapshot if snapshot is not None and snapshot.version > known_version else None
