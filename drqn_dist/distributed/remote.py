"""Ray's edge: each plain role behind a thin remote class, and how it is started (the replay is in `remote_replay.py`).
Nothing here decides anything; the supervisor does.

Replay and learner are started again by Ray itself under the same handle, so that the others need not be told.
A new replay or learner must not serve anyone before it has what the one before it left: it waits for `begin`.
"""

import os
import sys
import time
from dataclasses import replace
from typing import Any

import ray
import torch

from actors.actor import Actor, ActorStats
from actors.evaluator import Evaluation, Evaluator, Played
from drqn_dist.config import TrainConfig
from drqn_dist.distributed.channels import (
    RAY,
    Pulse,
    RemotePriorities,
    RemoteSink,
    RemoteSource,
    RemoteWeights,
    newest_weights,
)
from drqn_dist.distributed.placement import ACTOR_OPTIONS, Placement
from drqn_dist.distributed.remote_replay import find_replay
from drqn_dist.envs.atari import PREFIX as ATARI
from drqn_dist.interfaces import EnvSpec, WeightSnapshot
from drqn_dist.seeding import derive_seed
from drqn_dist.training.memory import plan_frame_store, usable_cores
from drqn_dist.training.session import Saved
from learner.learner import Learner, LearnerStats
from learner.weight_publisher import WeightPublisher

EVALUATOR_NICENESS = 4
"""Added to the 15 that Ray gives its workers; 19 is the end of the scale."""


class LearnerRole:
    """Learner in a process of its own; weights are served from a thread beside the training."""

    def __init__(self, config: TrainConfig, spec: EnvSpec, run: str) -> None:
        # Training runs thousands of short operations a second and takes the interpreter's lock after each; by default
        # another thread that holds it would give it up only after 5 ms.
        sys.setswitchinterval(2e-4)
        self._config = config
        self._begun = False
        self._publisher = WeightPublisher()
        self._ref: tuple[int, ray.ObjectRef[WeightSnapshot]] | None = None
        shards = find_replay(config, run)
        learner = config.learner
        seed = derive_seed(config.seed, "learner")
        source = RemoteSource(shards, learner.batch_windows, learner.unroll_steps, seed)
        self._priorities = priorities = RemotePriorities(shards, config.batches_per_draw)
        self._plan = plan_frame_store(config, spec)
        self._learner = Learner(config, spec, source, priorities, self._publisher, self._plan, threaded=True)

    def begin(self, saved: Saved | None) -> Pulse:
        """Goes on from there, or from fresh weights.

        Raises:
            CheckpointError: it belongs to another network.
        """
        if saved is not None:
            self._learner.load(saved.tensors, saved.meta["learner"])
        self._begun = True
        return Pulse(note=str(self._plan))

    def run(self, seconds: float) -> LearnerStats | None:
        """Trains for about this long, also where no batch comes; None before `begin`."""
        if not self._begun:
            return None
        torch.set_num_threads(self._config.learner.torch_threads)  # a thread's own setting, and this is a new one
        stats = self._learner.run(seconds)
        queues = stats.queues | {"priorities": self._priorities.unacknowledged}
        return replace(stats, queues=queues)

    def save(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """None before `begin`."""
        return self._learner.save() if self._begun else None

    @ray.method(concurrency_group="weights")
    def latest(self, known_version: int) -> list[ray.ObjectRef[WeightSnapshot]]:
        """The newest snapshot's reference in a list (so that it is not resolved on the way), or an empty list.

        Each version is put into the object store once, however many actors ask for it. An actor may know a later
        version than there is, from before the learner was started again: it gets the present one all the same.
        """
        snapshot = self._publisher.latest(-1) if self._begun else None
        if snapshot is None or snapshot.version == known_version:
            return []
        if self._ref is None or self._ref[0] != snapshot.version:
            self._ref = (snapshot.version, ray.put(snapshot))
        return [self._ref[1]]


class ActorRole:
    """Actor in a process of its own."""

    def __init__(
        self, config: TrainConfig, index: int, replay: Any, learner: Any, agent_steps: int, incarnation: int
    ) -> None:
        self._config = config
        self._sink = RemoteSink(replay, config.actor.max_pushes_in_flight)
        self._weights = RemoteWeights(learner)
        start = time.monotonic()
        self._actor = Actor(config, index, self._sink, self._weights, agent_steps, incarnation)
        self._slow_s = time.monotonic() - start

    def run(self, seconds: float) -> ActorStats:
        torch.set_num_threads(self._config.actor.torch_threads)
        return self._actor.run(seconds)

    @ray.method(concurrency_group="pulse")
    def pulse(self) -> Pulse:
        """A sign of life, also while the rate limiter keeps the actor waiting."""
        waits = self._sink.waits or self._weights.waits
        pushes = self._sink.unacknowledged
        return Pulse(pushes=pushes, moves=self._actor.batched_steps, waits=waits, slow_s=self._slow_s)


class EvaluatorRole:
    """Evaluator in a process of its own."""

    def __init__(self, config: TrainConfig) -> None:
        # It takes what the roles that train leave of the cores: the next evaluation can wait, they cannot.
        os.nice(EVALUATOR_NICENESS)
        self._config = config
        self._evaluators: dict[tuple[int, bool], Evaluator] = {}
        self._played: Played | None = None
        self._moves = 0
        self._waits = False

    def evaluate(self, source: Any, seed: int, episodes: int) -> Evaluation:
        """Plays with these weights (a WeightSnapshot), or with the newest of this learner (its handle)."""
        torch.set_num_threads(self._config.actor.torch_threads)
        given = isinstance(source, WeightSnapshot)  # then training rests, and all cores are free
        if (episodes, given) not in self._evaluators:
            acting = self._config.actor
            if given and self._config.env.id.startswith(ATARI):  # others may not bear threads
                acting = replace(acting, env_threads=usable_cores())
            self._evaluators[episodes, given] = Evaluator(replace(self._config, actor=acting), episodes)
        self._waits = not given
        try:
            weights = source if given else newest_weights(source)
            self._waits = False
            return self._evaluators[episodes, given].evaluate(weights, seed, self._note)
        finally:
            self._played, self._waits = None, False

    def _note(self, played: Played) -> None:
        self._played = played
        self._moves += 1

    @ray.method(concurrency_group="pulse")
    def pulse(self) -> Pulse:
        """A sign of life while games are played, and how far they are."""
        return Pulse(moves=self._moves, waits=self._waits, played=self._played)


def start_learner(config: TrainConfig, spec: EnvSpec, run: str, where: Placement) -> Any:
    """A learner process, on a GPU if it is to use one; Ray starts it again if it dies. It waits for `begin`."""
    # Ray shows the process its GPU alone, but one that got none sees them all: others are at work there.
    config = replace(config, learner=replace(config.learner, device="cuda" if where.gpus else "cpu"))
    remote = RAY.remote(num_cpus=1, max_restarts=-1, concurrency_groups={"weights": 1})(LearnerRole)
    return remote.options(**where.learner()).remote(config, spec, run)


def start_actor(config: TrainConfig, index: int, replay: Any, learner: Any, agent_steps: int, incarnation: int) -> Any:
    """An actor process; if it dies the supervisor starts another incarnation."""
    remote = RAY.remote(num_cpus=1, concurrency_groups={"pulse": 1}, **ACTOR_OPTIONS)(ActorRole)
    return remote.remote(config, index, replay, learner, agent_steps, incarnation)


def start_evaluator(config: TrainConfig, where: Placement) -> Any:
    """An evaluator process; if it dies the supervisor starts another one."""
    remote = RAY.remote(num_cpus=1, concurrency_groups={"pulse": 1})(EvaluatorRole)
    return remote.options(**where.other(config.replay.shards)).remote(config)
