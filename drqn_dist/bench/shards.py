"""What a shard of the replay costs: CPU time of a push and of a window, of one shard and of several together, in our
own code and in whole processes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import cycle, repeat
from statistics import fmean
from typing import Any

import numpy as np
import ray

from drqn_dist.bench.calls import answers
from drqn_dist.bench.figures import Figures
from drqn_dist.bench.fill import fragments_per_push, unblocked
from drqn_dist.config import TrainConfig
from drqn_dist.distributed.channels import RemotePriorities, RemoteSource
from drqn_dist.distributed.local_ray import LocalRay
from drqn_dist.distributed.remote_replay import start_replay
from drqn_dist.interfaces import EnvSpec
from drqn_dist.training.memory import batches_per_draw, object_store_bytes
from replay_server.replay import Replay, make_shard
from replay_server.shards import SHARD_STRIDE, ShardLedger

COUNTS = (1, 2, 4)
"""Shards that are compared."""
CALLS = 100
"""To each shard, in one measurement."""
PROCESS_CALLS = 480
"""To all shards together, in one measurement of their processes."""
IN_FLIGHT = 8
"""Pushes under way at once, to each shard."""
REST_S = 1.0
"""How long processes are watched while nobody calls them."""
STORED = 1_000
"""Full fragments that a process holds."""
FILL_S = 300.0


def shard_costs(
    config: TrainConfig, spec: EnvSpec, supply: Iterator[list[bytes]], capacity_steps: int, repeats: int
) -> Figures:
    """CPU time in the replay's own code, all shards together, without what Ray spends on the calls.

    A window includes its priority sent back. Calls are as large as a run makes them.

    Returns:
        cpu_us_per_push, cpu_us_per_window of one shard; shards_<K>_push_cost and shards_<K>_window_cost: CPU time of
        the same operation with K shards over that with one, measured in turn.
    """
    parts = {count: _Shards(config, spec, count, supply, capacity_steps) for count in COUNTS}
    figures = Figures()
    for _ in range(repeats):
        pieces = next(supply)
        costs = {count: (shards.push(pieces), shards.draw()) for count, shards in parts.items()}
        push, window = costs[1]
        figures.add(cpu_us_per_push=1e6 * push, cpu_us_per_window=1e6 * window, **_relative("shards", costs))
    return figures


def _relative(of: str, costs: dict[int, tuple[float, float]]) -> dict[str, float]:
    """Costs of a push and a window with several shards over those with one."""
    found = {}
    for count in COUNTS[1:]:
        for what, several, one in zip(("push", "window"), costs[count], costs[1], strict=True):
            found[f"{of}_{count}_{what}_cost"] = several / one
    return found


class _Shards:
    def __init__(
        self, config: TrainConfig, spec: EnvSpec, count: int, supply: Iterator[list[bytes]], capacity_steps: int
    ) -> None:
        settings = replace(unblocked(config.replay, capacity_steps), shards=count)
        config = replace(config, mode="ray", actors=max(config.num_actors, count), replay=settings)
        self._batches, self._windows = batches_per_draw(config, spec), config.learner.batch_windows
        self._parts: list[Replay] = [make_shard(config, shard, self._batches) for shard in range(count)]
        self._ledger = ShardLedger(count, seed=0)
        self._turn = 0
        while not all(part.stats().evicted_steps for part in self._parts):
            self.push(next(supply))
        for shard, part in enumerate(self._parts):
            self._ledger.update(shard, part.sample_share(0, 0, None, 0.0)[1])

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
            samples = []
            for shard, (part, count) in enumerate(zip(self._parts, split.windows, strict=True)):
                elsewhere = self._ledger.elsewhere(shard)
                start = time.thread_time()
                drawn, tally = part.sample_share(count, 0, elsewhere, 0.0)
                spent += time.thread_time() - start
                samples.append(drawn)
                self._ledger.update(shard, tally)
            ids = np.concatenate([batch.ids for batch in self._ledger.join(split, samples)])
            windows += len(ids)
            for shard, part in enumerate(self._parts):
                theirs = ids[ids // SHARD_STRIDE == shard]
                start = time.thread_time()
                part.update_priorities(theirs, np.ones(len(theirs)))
                spent += time.thread_time() - start
        return spent / windows


def process_costs(
    config: TrainConfig, spec: EnvSpec, supply: Iterator[list[bytes]], repeats: int, calls: int = PROCESS_CALLS
) -> Figures:
    """CPU time of the shards' whole processes, Ray's part included, beyond what they use at rest, all together. They
    are called as actors, loader and learner call them, from one process, each shard as often at once.

    With fewer cores than processes everything costs more, sharded or not: a window's cost is compared with that of one
    replay alone, and of K replays called at the same time, each a single shard.

    Returns:
        process_us_per_fragment, process_us_per_window of one shard; processes_<K>_push_cost and
        processes_<K>_window_cost: CPU time of the same operation with K shards over that with one, measured in turn;
        processes_<K>_window_cost_crowded: over that of K replays at once.

    Raises:
        ConfigError: Ray does not start.
    """
    figures = Figures()
    most = max(COUNTS)
    with (
        closing(LocalRay(None, cpus=sum(COUNTS) + most, store_bytes=object_store_bytes(config, spec))),
        ThreadPoolExecutor(most) as callers,
    ):
        parts = {count: _Processes(config, spec, count, supply) for count in COUNTS}
        singles = [_Processes(config, spec, 1, supply) for _ in range(most)]
        for _ in range(repeats):
            _rest([*parts.values(), *singles])
            costs = {count: (part.push(supply, calls), part.draw(calls)) for count, part in parts.items()}
            push, window = costs[1]
            figures.add(
                process_us_per_fragment=1e6 * push, process_us_per_window=1e6 * window, **_relative("processes", costs)
            )
            for count in COUNTS[1:]:
                at_once = fmean(callers.map(_Processes.draw, singles[:count], repeat(calls // count)))
                figures.add(**{f"processes_{count}_window_cost_crowded": costs[count][1] / at_once})
        for part in (*parts.values(), *singles):
            part.close()
    return figures


def _rest(parts: Collection[_Processes]) -> None:
    """Watches what all of them use at rest, now."""
    start, before = time.perf_counter(), [part.cpu_s() for part in parts]
    time.sleep(REST_S)
    for part, spent in zip(parts, before, strict=True):
        part.rest_cores = (part.cpu_s() - spent) / (time.perf_counter() - start)


class _Processes:
    def __init__(self, config: TrainConfig, spec: EnvSpec, count: int, supply: Iterator[list[bytes]]) -> None:
        self._burst = fragments_per_push(config)
        settings = replace(unblocked(config.replay, count * STORED * config.window.fragment), shards=count)
        fed = replace(config.actor, envs_per_actor=1)  # so that a shard has room for their windows
        config = replace(config, mode="ray", actors=count, actor=fed, replay=settings)
        self._shards = start_replay(config, spec, f"cost-{uuid.uuid4().hex}")
        self._batches = batches_per_draw(config, spec)
        self._source = RemoteSource(self._shards, config.learner.batch_windows, config.window.unroll, seed=0)
        self._priorities = RemotePriorities(self._shards, self._batches)
        self._prioritized = config.replay.prioritized
        waiting: list[Any] = []
        for shard in self._shards:
            stored = 0
            while stored < STORED + self._burst:
                pieces = next(supply)
                waiting.append(shard.push.remote(pieces))
                stored += len(pieces)
        ray.get(waiting, timeout=FILL_S)
        self.rest_cores = 0.0
        """CPU seconds per second while nobody calls, of all shards together."""

    def push(self, supply: Iterator[list[bytes]], calls: int) -> float:
        """CPU seconds of each fragment, in pushes of as many as an actor makes."""
        pieces: list[bytes] = []
        while len(pieces) < calls * self._burst:
            pieces += next(supply)
        pushes = [pieces[call * self._burst : (call + 1) * self._burst] for call in range(calls)]
        start, spent = time.perf_counter(), self.cpu_s()
        turns = cycle(self._shards)
        answers((next(turns).push.remote(push) for push in pushes), IN_FLIGHT * len(self._shards))
        return self._since(start, spent) / (calls * self._burst)

    def draw(self, calls: int) -> float:
        """CPU seconds of each window, its priority sent back."""
        start, spent = time.perf_counter(), self.cpu_s()
        windows = 0
        for _ in range(calls // len(self._shards)):
            for batch in self._source.sample(self._batches):
                windows += len(batch.ids)
                if self._prioritized:
                    self._priorities.update_priorities(batch.ids, np.ones(len(batch.ids)))
        return self._since(start, spent) / windows

    def close(self) -> None:
        for shard in self._shards:
            ray.kill(shard)

    def _since(self, start: float, spent: float) -> float:
        return max(1e-9, self.cpu_s() - spent - self.rest_cores * (time.perf_counter() - start))

    def cpu_s(self) -> float:
        """After all that was sent before has been done: a process's calls of this kind are answered in order."""
        return float(sum(work.cpu_s for work in ray.get([shard.work.remote() for shard in self._shards])))
