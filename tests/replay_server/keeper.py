"""A learner that only keeps fragments, in plain dictionaries, and watches how they come."""

from __future__ import annotations

from collections.abc import Iterator

from drqn_dist.interfaces import Fresh, Held, WindowDraws

Log = list[tuple[int, bytes]]


class Keeper:
    """A `FragmentInbox`; keeps the newest fragments of each shard, as many as it has room for."""

    def __init__(self, shards: int = 1, fresh_limit: int = 10**6, room: int = 10**9) -> None:
        self.fresh_limit, self._room = fresh_limit, room
        self.logs: list[dict[int, Log]] = [{} for _ in range(shards)]
        """Of each shard, by log: serial numbers and fragments, in the order in which they came."""
        self._held = [Held() for _ in range(shards)]
        self._kept: dict[int, bytes] = {}

    def held(self, shard: int) -> Held:
        held = self._held[shard]
        first = max(held.first, min(held.end, held.end + self.fresh_limit - self._room))
        self._set(shard, Held(held.log, first, held.end))
        return self._held[shard]

    def receive(self, fresh: Fresh, shard: int) -> None:
        assert len(fresh.fragments) <= self.fresh_limit
        held = self._held[shard]
        first = held.first if (held.log, held.end) == (fresh.log, fresh.first) else fresh.first
        self._set(shard, Held(fresh.log, first, fresh.first + len(fresh.fragments)))
        numbered = list(enumerate(fresh.fragments, fresh.first))
        self._kept |= dict(numbered)
        self.logs[shard].setdefault(fresh.log, []).extend(numbered)

    def read(self, draws: WindowDraws) -> dict[int, bytes]:
        """The fragments that drawn windows read, after checking that those and no others came along which are not
        kept."""
        read = {serial for chain in chains_of(draws) for serial in chain}
        assert draws.unheld.tolist() == sorted(read - self._kept.keys())
        came = dict(zip(draws.unheld.tolist(), draws.unheld_fragments, strict=True))
        return {serial: came.get(serial, self._kept.get(serial, b"")) for serial in read}

    def kept(self) -> dict[int, bytes]:
        return dict(self._kept)

    def _set(self, shard: int, held: Held) -> None:
        for serial in range(self._held[shard].first, self._held[shard].end):
            if not held.first <= serial < held.end:
                del self._kept[serial]
        self._held[shard] = held


def chains_of(draws: WindowDraws) -> Iterator[list[int]]:
    """Each window's serial numbers, after checking that only -1 follows them."""
    for row in draws.chains.tolist():
        length = sum(serial >= 0 for serial in row)
        assert length > 0
        assert row[length:] == [-1] * (len(row) - length)
        yield row[:length]
