"""Replay and loaders behind Ray: like `remote.py`, but without torch, which would take three times as long to start."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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


@dataclass
class ReplayWork:
    """What a replay process has done since it was started."""

    cpu_s: float = 0.0
    """CPU seconds of the process, Ray's threads included."""
    calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("push", "sample", "priorities"), 0))
    """Finished calls by kind; a sample is one batch."""
    call_cpu_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("push", "sample", "priorities"), 0.0))
    """CPU seconds of our own code in them, without Ray's."""


@dataclass(frozen=True)
class LoaderWork:
    """What a loader process has done since it was started."""

    cpu_s: float = 0.0
    batches: int = 0
    wait_s: float = 0.0
    """Seconds between asking the replay for samples and having them."""
    decode_s: float = 0.0
    sample_bytes: int = 0
    """Compressed fragments received."""
    batch_bytes: int = 0
    """Decoded batches given to the learner."""


class ReplayRole:
    """Replay in a process of its own. Pushes, samples and everything else have threads of their own, so that a
    push that waits for the rate limiter does not keep a sample from being answered."""

    def __init__(self, config: TrainConfig) -> None:
        self._replay = make_replay(config)
        self._begun = threading.Event()
        self._work, self._work_lock = ReplayWork(), threading.Lock()

    def begin(self, state: dict[str, Any] | None) -> None:
        """Goes on from these counters, if there are any, and lets waiting pushes and samples in."""
        if not self._begun.is_set():
            if state is not None:
                self._replay.set_state(state)
            self._begun.set()

    @ray.method(concurrency_group="push")
    def push(self, payload: bytes) -> bool:
        self._begun.wait()
        with self._counted("push"):
            return self._replay.push(payload)

    @ray.method(concurrency_group="sample")
    def sample(self, count: int) -> list[WindowSample]:
        self._begun.wait()
        with self._counted("sample", count):
            return [self._replay.sample() for _ in range(count)]

    def update_priorities(self, ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]) -> None:
        with self._counted("priorities"):
            self._replay.update_priorities(ids, priorities)

    def pulse(self) -> ReplayPulse | None:
        """None before `begin`."""
        return ReplayPulse(self._replay.stats(), self._replay.get_state()) if self._begun.is_set() else None

    def work(self) -> ReplayWork:
        with self._work_lock:
            return ReplayWork(time.process_time(), dict(self._work.calls), dict(self._work.call_cpu_s))

    @contextmanager
    def _counted(self, kind: str, count: int = 1) -> Iterator[None]:
        start = time.thread_time()  # which stands still while the rate limiter keeps a call waiting
        yield
        spent = time.thread_time() - start
        with self._work_lock:
            self._work.calls[kind] += count
            self._work.call_cpu_s[kind] += spent


class LoaderRole:
    """Draws and decodes batches in a process of its own, beside the learner's."""

    def __init__(self, config: TrainConfig, spec: EnvSpec, replay_name: str) -> None:
        # By name, because Ray cannot promise to start an actor again whose arguments hold handles.
        self._source = RemoteSource(ray.get_actor(replay_name))
        self._reader = WindowReader(config, spec)
        count = batches_per_call(config, spec)
        self._buffers = [self._reader.empty(config.learner.batch_windows) for _ in range(count)]
        self._batch_bytes = sum(value.nbytes for value in vars(self._buffers[0]).values() if hasattr(value, "nbytes"))
        self._work = LoaderWork()

    def load(self) -> list[WindowBatch]:
        """The next batches; Ray copies them before the next call overwrites them."""
        start = time.perf_counter()
        samples = self._source.sample(len(self._buffers))
        received = time.perf_counter()
        batches = [self._reader.read(sample, buffer) for sample, buffer in zip(samples, self._buffers, strict=True)]
        done = self._work
        self._work = LoaderWork(
            batches=done.batches + len(batches),
            wait_s=done.wait_s + received - start,
            decode_s=done.decode_s + time.perf_counter() - received,
            sample_bytes=done.sample_bytes + sum(len(payload) for sample in samples for payload in sample.fragments),
            batch_bytes=done.batch_bytes + len(batches) * self._batch_bytes,
        )
        return batches

    @ray.method(concurrency_group="pulse")
    def pulse(self) -> int:
        """A sign of life, also while the rate limiter keeps a sample waiting: the process's id."""
        return os.getpid()

    @ray.method(concurrency_group="pulse")
    def work(self) -> LoaderWork:
        return replace(self._work, cpu_s=time.process_time())


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
