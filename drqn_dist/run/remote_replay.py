"""Replay and loaders behind Ray: like `remote.py`, but without torch, which would take three times as long to start."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from drqn_dist.config import TrainConfig
from drqn_dist.fragment import WindowBatch
from drqn_dist.interfaces import EnvSpec, WindowSample
from drqn_dist.run.channels import RAY, RemoteSource
from drqn_dist.run.memory import batches_per_call
from learner.window_reader import WindowReader
from replay_server.replay import ReplayStats, make_replay


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
    def sample(self, count: int) -> list[WindowSample]:
        self._begun.wait()
        return [self._replay.sample() for _ in range(count)]

    def update_priorities(self, ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]) -> None:
        self._replay.update_priorities(ids, priorities)

    def pulse(self) -> ReplayPulse | None:
        """None before `begin`."""
        return ReplayPulse(self._replay.stats(), self._replay.get_state()) if self._begun.is_set() else None


class LoaderRole:
    """Draws and decodes batches in a process of its own, beside the learner's."""

    def __init__(self, config: TrainConfig, spec: EnvSpec, replay_name: str) -> None:
        # By name, because Ray cannot promise to start an actor again whose arguments hold handles.
        self._source = RemoteSource(ray.get_actor(replay_name))
        self._reader = WindowReader(config, spec)
        count = batches_per_call(config, spec)
        self._buffers = [self._reader.empty(config.learner.batch_windows) for _ in range(count)]

    def load(self) -> list[WindowBatch]:
        """The next batches; Ray copies them before the next call overwrites them."""
        samples = self._source.sample(len(self._buffers))
        return [self._reader.read(sample, buffer) for sample, buffer in zip(samples, self._buffers, strict=True)]

    @ray.method(concurrency_group="pulse")
    def pulse(self) -> int:
        """A sign of life, also while the rate limiter keeps a sample waiting: the process's id."""
        return os.getpid()


def start_replay(config: TrainConfig, name: str, state: dict[str, Any] | None = None) -> Any:
    """A replay process, told to begin; Ray starts it again if it dies, and then it waits for another `begin`."""
    groups = {"push": 4, "sample": config.learner.loaders}
    remote = RAY.remote(num_cpus=1, max_restarts=-1, concurrency_groups=groups)(ReplayRole)
    replay = remote.options(name=name).remote(config)
    replay.begin.remote(state)
    return replay


def start_loaders(config: TrainConfig, spec: EnvSpec, replay_name: str) -> list[Any]:
    """Loader processes; Ray starts them again if they die. They live as long as these handles."""
    groups = {"pulse": 1}
    remote = RAY.remote(num_cpus=1, max_restarts=-1, concurrency_groups=groups)(LoaderRole)
    return [
        remote.options(name=loader_name(replay_name, index)).remote(config, spec, replay_name)
        for index in range(config.learner.loaders)
    ]


def loader_name(replay_name: str, index: int) -> str:
    """Under which Ray knows a loader of this replay."""
    return f"{replay_name}-loader-{index}"
