"""The learner's way from a replay to windows, without a network, and where the windows lie."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from drqn_dist.codec import FragmentHeader, decode_header
from drqn_dist.config import TrainConfig
from drqn_dist.interfaces import EnvSpec, FragmentInbox, Fresh, Held, WindowDraws, WindowSource
from drqn_dist.network.torso import make_torso
from learner.feed import Batch, Feed
from learner.fragment_table import Capacity
from learner.frame_store import StorePlan, plan_store, state_shape
from learner.windows import WindowTensors, read_windows, rows_of
from replay_server.replay import Replay
from replay_server.shards import ShardLedger

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Place:
    """Where a window begins."""

    env_id: int
    episode_id: int
    start: int


def full_plan(config: TrainConfig, spec: EnvSpec, place: Literal["device", "host"] = "device") -> StorePlan:
    """All that the replay holds."""
    return replace(plan_store(config, spec, False, 0, 10**12), place=place)


def small_plan(
    config: TrainConfig, spec: EnvSpec, fresh_limit: int, place: Literal["device", "host"] = "device"
) -> StorePlan:
    """The smallest part that `plan_store` ever plans for this limit: what is older comes along when it is drawn."""
    shape = config.window
    fragments = 2 * (fresh_limit + 2)
    states = shape.fragment // shape.stride if config.learner.stored_state and state_shape(config, spec)[0] else 0
    extra = config.batches_per_draw * config.learner.batch_windows * shape.most_fragments
    capacity = Capacity(fragments * (shape.fragment + 1), fragments * states, 4 * fragments, extra)
    return StorePlan(place, capacity, fresh_limit, 0, complete=False)


def make_shards(config: TrainConfig, seed: int = 0) -> list[Replay]:
    """The shards of a replay that never lets anybody wait."""
    count = config.replay.shards
    windows, batches = config.learner.batch_windows, config.batches_per_draw
    return [
        Replay(config.replay, config.window, windows, 10**9, seed + k, shard=k, shards=count, batches_per_draw=batches)
        for k in range(count)
    ]


def fill(shards: Sequence[Replay], payloads: Iterable[bytes]) -> None:
    """Each environment feeds one shard."""
    for payload in payloads:
        header = decode_header(payload, 2**24)
        assert shards[header.env_id % len(shards)].push(payload)


class ShardsSource:
    """Shards of the same process as a `WindowSource`."""

    def __init__(self, shards: Sequence[Replay], config: TrainConfig) -> None:
        self._shards, self._config = shards, config
        self._ledger = ShardLedger(len(shards), seed=0)

    def sample(self, batches: int, inbox: FragmentInbox) -> WindowDraws | None:
        learner = self._config.learner
        split = self._ledger.split(batches, learner.batch_windows)
        parts = []
        for shard, replay in enumerate(self._shards):
            counts = split.counts[shard].tolist() if split.windows[shard] else []
            answer = replay.sample(
                counts,
                inbox.held(shard),
                inbox.fresh_limit,
                timeout_s=0.0,
                call_steps=sum(split.windows) * learner.unroll_steps,
                elsewhere=self._ledger.elsewhere(shard),
            )
            self._ledger.update(shard, answer.tally)
            inbox.receive(answer.fresh, shard)
            parts.append(answer.draws)
        if not any(split.windows) or any(
            part is None for part, windows in zip(parts, split.windows, strict=True) if windows
        ):
            return None
        return self._ledger.join(split, parts)


class Watched:
    """A `WindowSource` that remembers where the windows lie which another one, `source`, draws."""

    def __init__(self, source: WindowSource) -> None:
        self.source = source
        self.places: dict[int, Place] = {}
        self.draws: list[WindowDraws | None] = []
        self.fresh: list[int] = []
        """How many fragments came with each answer."""
        self._headers: dict[int, FragmentHeader] = {}

    def sample(self, batches: int, inbox: FragmentInbox) -> WindowDraws | None:
        draws = self.source.sample(batches, _Listening(inbox, self._hear, self.fresh))
        self.draws.append(draws)
        if draws is not None:
            self._hear(draws.unheld.tolist(), draws.unheld_fragments)
            for number, start, serial in zip(draws.ids, draws.starts, draws.chains[:, 0], strict=True):
                header = self._headers[int(serial)]
                self.places[int(number)] = Place(header.env_id, header.episode_id, int(start))
        return draws

    def _hear(self, serials: Iterable[int], payloads: Sequence[bytes]) -> None:
        self._headers |= {s: decode_header(p, 2**24) for s, p in zip(serials, payloads, strict=True)}


class _Listening:
    """A `FragmentInbox` in front of another one."""

    def __init__(self, inbox: FragmentInbox, hear: Any, fresh: list[int]) -> None:
        self._inbox, self._hear, self._fresh = inbox, hear, fresh

    @property
    def fresh_limit(self) -> int:
        return self._inbox.fresh_limit

    def held(self, shard: int) -> Held:
        return self._inbox.held(shard)

    def receive(self, fresh: Fresh, shard: int) -> None:
        assert len(fresh.fragments) <= self.fresh_limit
        self._fresh.append(len(fresh.fragments))
        self._hear(range(fresh.first, fresh.first + len(fresh.fragments)), fresh.fragments)
        self._inbox.receive(fresh, shard)


@dataclass(frozen=True)
class Read:
    """One batch, and where its windows lie."""

    batch: Batch
    windows: WindowTensors
    places: list[Place]


class Reader:
    """Reads batches as the learner does."""

    def __init__(self, config: TrainConfig, spec: EnvSpec, source: WindowSource, plan: StorePlan) -> None:
        self._config = config
        self.source = Watched(source)
        torso = make_torso(config.network, spec.observation_shape, config.env.stack_frames)
        self.feed = Feed(config, spec, self.source, torso, plan, CPU, threaded=False)

    def next(self) -> Read:
        batch = self.feed.next()
        gathered = batch.gathered
        if gathered is None:
            gathered = self.feed.store.gather(*rows_of(batch.places))
        with_last = self._config.network.last_action_and_reward
        windows = read_windows(gathered, batch.places, self._config.window, with_last)
        places = [self.source.places[number] for number in batch.ids.tolist()]
        if batch.pasts is not None:  # the next batch may overwrite what they read
            store = self.feed.store
            pasts = [past._replace(gathered=store.gather(*rows_of(past.places))) for past in batch.pasts]
            batch = batch._replace(gathered=gathered, pasts=pasts)
        return Read(batch, windows, places)

    def read_until(self, seen: int) -> list[Read]:
        """Batches until so many different windows have come."""
        reads: list[Read] = []
        found: set[int] = set()
        while len(found) < seen:
            reads.append(self.next())
            found |= set(reads[-1].batch.ids.tolist())
            assert len(reads) < 100 + 20 * seen * max(1, int(math.log(seen + 1)))
        return reads


def drawable(shards: Sequence[Replay]) -> int:
    """Windows that can be drawn from them."""
    return sum(shard.stats().windows for shard in shards)


def same(one: np.ndarray | torch.Tensor, other: np.ndarray | torch.Tensor) -> bool:
    """Whether both hold the same numbers, of the same shape."""
    return np.array_equal(np.asarray(one), np.asarray(other))
