"""Ray's edge: each plain role behind a thin remote class, and how it is started. Nothing here decides anything; the
supervisor does.

Replay and learner are started again by Ray itself under the same handle, so that the others need not be told. A new
process must not serve anyone before it has what the one before it left: it waits for `begin`.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch

from actors.actor import Actor, ActorStats
from actors.evaluator import Evaluation, Evaluator
from drqn_dist.config import TrainConfig
from drqn_dist.interfaces import EnvSpec, WeightSnapshot, WindowSample
from drqn_dist.run.channels import (
    SAMPLES_IN_FLIGHT,
    RemotePriorities,
    RemoteSink,
    RemoteSource,
    RemoteWeights,
    newest_weights,
)
from drqn_dist.run.serial import make_replay
from drqn_dist.run.session import Saved
from learner.batch_loader import PrefetchLoader
from learner.learner import Learner, LearnerStats, resolve_device
from learner.weight_publisher import WeightPublisher
from learner.window_reader import WindowReader
from replay_server.replay import ReplayStats

_RAY: Any = ray
"""Ray's annotations do not know all of its own options."""


@dataclass(frozen=True)
class ReplayPulse:
    """A sign of life of the replay, and what a new one would need to go on counting."""

    stats: ReplayStats
    state: dict[str, Any]


class ReplayRole:
    """Replay in a process of its own. Pushes, samples and everything else have threads of their own, so that a
    push that waits for the rate limiter does not keep a sample from being answered."""

    def __init__(self, config: TrainConfig) -> None:
        self._replay = make_replay(config)
        self._begun = threading.Event()

    def begin(self, state: dict[str, Any] | None) -> None:
        """Goes on from these counters, if there are any, and lets waiting pushes and samples in."""
        if not self._begun.is_set():
            if state is not None:
                self._replay.set_state(state)
            self._begun.set()

    @ray.method(concurrency_group="push")
    def push(self, payload: bytes) -> bool:
        self._begun.wait()
        return self._replay.push(payload)

    @ray.method(concurrency_group="sample")
    def sample(self) -> WindowSample:
        self._begun.wait()
        return self._replay.sample()

    def update_priorities(self, ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]) -> None:
        self._replay.update_priorities(ids, priorities)

    def pulse(self) -> ReplayPulse | None:
        """None before `begin`."""
        return ReplayPulse(self._replay.stats(), self._replay.get_state()) if self._begun.is_set() else None


class LearnerRole:
    """Learner in a process of its own; weights are served from a thread beside the training."""

    def __init__(self, config: TrainConfig, spec: EnvSpec, replay_name: str) -> None:
        # By name, because Ray cannot promise to start an actor again whose arguments hold handles.
        replay = ray.get_actor(replay_name)
        # Training runs thousands of short operations a second and takes the interpreter's lock after each; by default
        # a loader thread that holds it would give it up only after 5 ms.
        sys.setswitchinterval(2e-4)
        self._config = config
        self._begun = False
        self._publisher = WeightPublisher()
        self._ref: tuple[int, ray.ObjectRef[WeightSnapshot]] | None = None
        self._loader = PrefetchLoader(
            RemoteSource(replay),
            WindowReader(config, spec),
            config.learner.batch_windows,
            resolve_device(config.learner.device),
            config.learner.prefetch_batches,
            config.learner.loader_threads,
        )
        self._learner = Learner(config, spec, self._loader, RemotePriorities(replay), self._publisher)

    def begin(self, saved: Saved | None) -> None:
        """Goes on from there, or from fresh weights.

        Raises:
            CheckpointError: it belongs to another network.
        """
        if saved is not None:
            self._learner.load(saved.tensors, saved.meta["learner"])
        self._begun = True

    def run(self, seconds: float) -> LearnerStats | None:
        """Trains for about this long, also where no batch comes; None before `begin`."""
        if not self._begun:
            return None
        torch.set_num_threads(self._config.learner.torch_threads)  # a thread's own setting, and this is a new one
        deadline, waited = time.monotonic() + seconds, 0.0
        while (now := time.monotonic()) < deadline:
            ready = self._loader.wait(deadline - now)
            waited += time.monotonic() - now
            if ready:
                self._learner.update()
        stats = self._learner.take_stats()
        return replace(stats, wait_s=stats.wait_s + waited)

    def save(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """None before `begin`."""
        return self._learner.save() if self._begun else None

    def adopt(self, weights: WeightSnapshot) -> None:
        self._learner.adopt(weights)

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
        sink = RemoteSink(replay, config.actor.max_pushes_in_flight)
        self._actor = Actor(config, index, sink, RemoteWeights(learner), agent_steps, incarnation)

    def run(self, seconds: float) -> ActorStats:
        torch.set_num_threads(self._config.actor.torch_threads)
        return self._actor.run(seconds)

    @ray.method(concurrency_group="pulse")
    def pulse(self) -> bool:
        """A sign of life, also while the rate limiter keeps the actor waiting."""
        return True


class EvaluatorRole:
    """Evaluator in a process of its own."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._evaluator = Evaluator(config, config.eval.episodes)

    def evaluate(self, source: Any, seed: int) -> Evaluation:
        """Plays with these weights (a WeightSnapshot), or with the newest of this learner (its handle)."""
        torch.set_num_threads(self._config.actor.torch_threads)
        weights = source if isinstance(source, WeightSnapshot) else newest_weights(source)
        return self._evaluator.evaluate(weights, seed)

    @ray.method(concurrency_group="pulse")
    def pulse(self) -> bool:
        """A sign of life while games are played."""
        return True


def start_replay(config: TrainConfig, name: str, state: dict[str, Any] | None = None) -> Any:
    """A replay process, told to begin; Ray starts it again if it dies, and then it waits for another `begin`."""
    groups = {"push": 4, "sample": SAMPLES_IN_FLIGHT}
    remote = _RAY.remote(num_cpus=1, max_restarts=-1, concurrency_groups=groups)(ReplayRole)
    replay = remote.options(name=name).remote(config)
    replay.begin.remote(state)
    return replay


def start_learner(config: TrainConfig, spec: EnvSpec, replay_name: str) -> Any:
    """A learner process, on a GPU if it is to use one; Ray starts it again if it dies. It waits for `begin`."""
    gpus = 1 if config.learner.device.startswith("cuda") else 0
    if config.learner.device == "auto" and _RAY.cluster_resources().get("GPU", 0) >= 1:
        gpus = 1
    remote = _RAY.remote(num_cpus=1, num_gpus=gpus, max_restarts=-1, concurrency_groups={"weights": 1})(LearnerRole)
    return remote.remote(config, spec, replay_name)


def start_actor(config: TrainConfig, index: int, replay: Any, learner: Any, agent_steps: int, incarnation: int) -> Any:
    """An actor process; if it dies the supervisor starts another incarnation."""
    remote = _RAY.remote(num_cpus=1, concurrency_groups={"pulse": 1})(ActorRole)
    return remote.remote(config, index, replay, learner, agent_steps, incarnation)


def start_evaluator(config: TrainConfig) -> Any:
    """An evaluator process; if it dies the supervisor starts another one."""
    return _RAY.remote(num_cpus=1, concurrency_groups={"pulse": 1})(EvaluatorRole).remote(config)
