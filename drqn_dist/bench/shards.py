"""What a push and a window cost in the replay's own code, with one shard and with several."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from drqn_dist.bench.figures import Figures
from drqn_dist.bench.fill import unblocked
from drqn_dist.config import TrainConfig
from drqn_dist.interfaces import SHARD_STRIDE, EnvSpec, Held
from replay_server.replay import Replay, make_shard
from replay_server.shards import ShardLedger

COUNTS = (1, 2, 4)
"""Shards that are compared."""
CALLS = 100
"""To each shard, in one measurement."""


def shard_costs(
    config: TrainConfig, spec: EnvSpec, supply: Iterator[list[bytes]], capacity_steps: int, repeats: int
) -> Figures:
    """CPU time of all shards together, without Ray's. A window includes its priority sent back; calls are as large as
    in a run.

    Returns:
        cpu_us_per_push, cpu_us_per_window of one shard; shards_<K>_push_cost, shards_<K>_window_cost: the same with K
        shards over that with one, measured in turn.
    """
    parts = {count: _Shards(config, spec, count, supply, capacity_steps) for count in COUNTS}
    figures = Figures()
    for _ in range(repeats):
        pieces = next(supply)
        costs = {count: (shards.push(pieces), shards.draw()) for count, shards in parts.items()}
        push, window = costs[1]
        figures.add(cpu_us_per_push=1e6 * push, cpu_us_per_window=1e6 * window)
        for count in COUNTS[1:]:
            relative = {f"shards_{count}_push_cost": costs[count][0] / push}
            relative[f"shards_{count}_window_cost"] = costs[count][1] / window
            figures.add(**relative)
    return figures


class _Shards:
    def __init__(
        self, config: TrainConfig, spec: EnvSpec, count: int, supply: Iterator[list[bytes]], capacity_steps: int
    ) -> None:
        settings = replace(unblocked(config.replay, capacity_steps), shards=count)
        config = replace(config, mode="ray", actors=max(config.actors, count), replay=settings)
        self._batches, self._windows = config.batches_per_draw, config.learner.batch_windows
        self._parts: list[Replay] = [make_shard(config, shard) for shard in range(count)]
        self._ledger = ShardLedger(count, seed=0)
        self._turn = 0
        while not all(part.stats().evicted_steps for part in self._parts):
            self.push(next(supply))
        self._held = []
        """As if a learner had every fragment: what is measured is drawing, not catching up."""
        for shard, part in enumerate(self._parts):
            answer = part.sample([], Held(), 0, 0.0)
            self._ledger.update(shard, answer.tally)
            self._held.append(Held(answer.fresh.log, 0, (shard + 1) * SHARD_STRIDE))

    def push(self, pieces: Sequence[bytes]) -> float:
        """CPU seconds of each push; the fragments are one actor's, and the actors take the shards in turn."""
        part = self._parts[self._turn % len(self._parts)]
        self._turn += 1
        start = time.thread_time()
        for piece in pieces:
            part.push(piece)
        return (time.thread_time() - start) / len(pieces)

    def draw(self) -> float:
        """CPU seconds of each window."""
        spent, windows = 0.0, 0
        for _ in range(CALLS):
            split = self._ledger.split(self._batches, self._windows)
            drawn = []
            for shard, part in enumerate(self._parts):
                counts, elsewhere = split.counts[shard].tolist(), self._ledger.elsewhere(shard)
                start = time.thread_time()
                answer = part.sample(counts, self._held[shard], 0, 0.0, 0, elsewhere)
                spent += time.thread_time() - start
                drawn.append(answer.draws)
                self._ledger.update(shard, answer.tally)
            ids = self._ledger.join(split, drawn).ids
            windows += len(ids)
            for shard, part in enumerate(self._parts):
                theirs = ids[ids // SHARD_STRIDE == shard]
                start = time.thread_time()
                part.update_priorities(theirs, np.ones(len(theirs)))
                spent += time.thread_time() - start
        return spent / windows
