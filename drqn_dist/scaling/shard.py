"""What calls to a replay shard cost: all CPU time of its process, Ray's part included, while one caller keeps it busy.
In a run a shard is called a few times a second, and what its process spends at rest would count as the calls'."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from drqn_dist.bench.calls import answers
from drqn_dist.bench.figures import Figures
from drqn_dist.bench.fill import copies, fragments_per_push, unblocked
from drqn_dist.bench.play import play
from drqn_dist.config import TrainConfig
from drqn_dist.distributed.local_ray import LocalRay
from drqn_dist.distributed.remote_replay import start_replay
from drqn_dist.interfaces import EnvSpec, Held
from drqn_dist.scaling.profile import ReplayCosts
from drqn_dist.training.memory import STORE_BYTES
from replay_server.shards import ShardAnswer

STORED = 1_000
"""Full fragments that the shard holds: pushes evict."""
LEAST_MANY = 8
"""Fragments in a large push, at least: the difference to a small one must show."""


def measure_shard(config: TrainConfig, spec: EnvSpec, calls: int = 200, repeats: int = 3) -> ReplayCosts:
    """Starts a shard, fills it with real play, and calls it as often as it answers.

    Two sizes of pushes tell the cost of a call from that of a fragment: one fragment, and as many as all environments
    of an actor complete in a push period, but at least LEAST_MANY.

    Args:
        calls: of each kind, in each repeat; the repeats give medians.

    Raises:
        ConfigError: Ray does not start.
    """
    steps = 4 * config.window.fragment * config.actor.envs_per_actor
    payloads = play(config, spec, max(2_000, steps), weights=None)
    supply = itertools.chain.from_iterable(copies(payloads, config.replay.max_fragment_bytes))
    many = max(LEAST_MANY, fragments_per_push(config))
    config = alone(config)
    batches = config.batches_per_draw
    counts = [config.learner.batch_windows] * batches
    values = np.ones(sum(counts))
    figures = Figures()
    with closing(LocalRay(None, cpus=1, store_bytes=STORE_BYTES)):
        (shard,) = start_replay(config, f"price-{uuid.uuid4().hex}")
        ray.get(shard.push.remote(list(itertools.islice(supply, STORED + STORED // 5))), timeout=120)
        for _ in range(repeats):
            pushes = [[list(itertools.islice(supply, size)) for _ in range(calls)] for size in (1, many)]
            (single_s, _), (burst_s, _) = (_spent(shard, (shard.push.remote(p) for p in kind)) for kind in pushes)
            held = _all_of(ray.get(shard.sample.remote([], Held(), 0, 0.0, 0, None)))
            draws = (shard.sample.remote(counts, held, 0, 0.0, 0, None) for _ in range(calls))
            sample_s, drawn = _spent(shard, draws)
            ids = [answer.draws.ids for answer in drawn]
            update_s, _ = _spent(shard, (shard.update_priorities.remote(some, values) for some in ids))
            fragment_s = max(0.0, burst_s - single_s) / (calls * (many - 1))
            figures.add(
                push_call_s=max(0.0, single_s / calls - fragment_s),
                fragment_s=fragment_s,
                sample_call_s=sample_s / calls,
                priorities_call_s=update_s / calls if config.replay.prioritized else 0.0,
            )
        ray.kill(shard)
    medians = figures.result()
    return ReplayCosts(batches_per_call=batches, **{name: medians[name] for name in medians["spread"]})


def _all_of(answer: ShardAnswer) -> Held:
    """A learner that has every fragment of a replay already."""
    return Held(answer.fresh.log, 0, 2**47)


def alone(config: TrainConfig) -> TrainConfig:
    """The same with one shard that holds few fragments and keeps nobody waiting, fed by one environment, so that there
    is room for its windows."""
    replay = replace(unblocked(config.replay, STORED * config.window.fragment), shards=1)
    actor = replace(config.actor, envs_per_actor=1)
    return replace(config, replay=replay, actors=1, actor=actor, address=None)


def _spent(shard: Any, calls: Iterable[Any]) -> tuple[float, list[Any]]:
    """CPU seconds of the shard's process for these calls, and their answers."""
    before = ray.get(shard.work.remote()).cpu_s
    found = answers(calls, in_flight=8)
    return float(ray.get(shard.work.remote()).cpu_s - before), found
