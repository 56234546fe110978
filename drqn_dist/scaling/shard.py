"""What one shard of the replay costs the core that it runs on: all CPU time of its process, Ray's part included, while
one caller keeps it busy. A run's own points cannot tell that: they call it a few times a second, and what the process
does at rest then counts as if the calls had caused it."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import ray

from drqn_dist.bench.calls import answers
from drqn_dist.bench.figures import Figures
from drqn_dist.bench.fill import copies, fragments_per_push, unblocked
from drqn_dist.config import TrainConfig
from drqn_dist.distributed.local_ray import LocalRay
from drqn_dist.distributed.remote_replay import start_replay
from drqn_dist.interfaces import EnvSpec
from drqn_dist.scaling.busy import busy_cpu_s
from drqn_dist.scaling.parts import Crowding
from drqn_dist.scaling.profile import ShardPrice
from drqn_dist.training.memory import batches_per_call, object_store_bytes

IN_FLIGHT = 8
"""Calls under way at once."""
STORED = 1_000
"""Full fragments that the shard holds: pushes evict."""
LEAST_MANY = 8
"""Fragments in a large push, at least: the difference to a small one must show."""
START_S = 120.0


def measure_shard(
    config: TrainConfig, spec: EnvSpec, cores: int, neighbours: float, calls: int = 200, repeats: int = 3
) -> ShardPrice:
    """Starts a shard, fills it with real play, and calls it as often as it answers.

    Two sizes of pushes, in turn, tell the price of a call from that of a fragment: one fragment, and as many as all
    environments of an actor complete in a push period, but at least LEAST_MANY.

    Args:
        cores, neighbours: of this machine (`Crowding`), to state prices of a core whose neighbours are idle.
        calls: of each kind, in each repeat.

    Raises:
        ConfigError: Ray does not start.
    """
    from drqn_dist.bench.play import play  # brings torch along

    steps = 4 * config.window.fragment * config.actor.envs_per_actor
    payloads = play(config, spec, max(2_000, steps), weights=None)
    supply = itertools.chain.from_iterable(copies(payloads, config.replay.max_fragment_bytes))
    many = max(LEAST_MANY, fragments_per_push(config))
    config = _alone(config)
    batches = batches_per_call(config, spec)
    windows = batches * config.learner.batch_windows
    values = np.ones(windows)
    figures = Figures()
    with closing(LocalRay(None, cpus=1, store_bytes=object_store_bytes(config, spec))):
        (shard,) = start_replay(config, spec, f"price-{uuid.uuid4().hex}")
        caller = _Caller(shard, cores, Crowding(neighbours))
        full = list(itertools.islice(supply, STORED + STORED // 5))
        ray.get(shard.push.remote(full), timeout=START_S)
        for _ in range(repeats):
            pushes = [[list(itertools.islice(supply, size)) for _ in range(calls)] for size in (1, many)]
            single, burst = (caller.make(shard.push.remote(push) for push in kind) for kind in pushes)
            sample = caller.make(shard.sample.remote(windows, 0, None, 0.0) for _ in range(calls))
            drawn = [answer.ids for answer, _ in sample.answers]
            update = caller.make(shard.update_priorities.remote(ids, values) for ids in drawn)
            idle = caller.idle(1.0)
            fragment_s = max(0.0, burst.cpu_s - single.cpu_s) / (calls * (many - 1))
            figures.add(
                push_call_s=max(0.0, single.cpu_s / calls - fragment_s),
                push_s=fragment_s,
                sample_s=sample.cpu_s / (calls * batches),
                priorities_s=update.cpu_s / calls if config.replay.prioritized else 0.0,
                rest_cores=idle.cpu_s / idle.seconds,
                fragments_per_s=many * calls / burst.seconds,
            )
        ray.kill(shard)
    found = figures.result()
    return ShardPrice(fragments_per_push=many, **{f.name: found[f.name] for f in fields(ShardPrice) if f.name in found})


def _alone(config: TrainConfig) -> TrainConfig:
    """The same with one shard that holds few fragments and keeps nobody waiting, fed by one environment, so that there
    is room for its windows."""
    replay = replace(unblocked(config.replay, STORED * config.window.fragment), shards=1)
    actor = replace(config.actor, envs_per_actor=1)
    return replace(config, replay=replay, actors=1, actor=actor, address=None)


@dataclass(frozen=True)
class _Spent:
    seconds: float
    cpu_s: float
    """Of the shard's process, as on a core whose neighbours are idle."""
    answers: list[Any]


class _Caller:
    """Calls a shard, a few calls at once."""

    def __init__(self, shard: Any, cores: int, crowding: Crowding) -> None:
        self._shard, self._cores, self._crowding = shard, cores, crowding

    def make(self, calls: Iterable[Any]) -> _Spent:
        """Waits for an answer before there are too many calls without."""
        cpu_s, busy_s, start = self._cpu_s(), busy_cpu_s(), time.perf_counter()
        found = answers(calls, IN_FLIGHT)
        seconds = time.perf_counter() - start
        busy = (busy_cpu_s() - busy_s) / seconds
        return _Spent(seconds, (self._cpu_s() - cpu_s) / self._crowding.slowdown(busy, self._cores), found)

    def idle(self, seconds: float) -> _Spent:
        """Calls nobody for so long."""
        cpu_s = self._cpu_s()
        time.sleep(seconds)
        return _Spent(seconds, self._cpu_s() - cpu_s, [])

    def _cpu_s(self) -> float:
        return float(ray.get(self._shard.work.remote()).cpu_s)
