"""Replay and loaders behind Ray: like `remote.py`, but without torch, which would take three times as long to start."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from drqn_dist.config import TrainConfig
from drqn_dist.distributed.channels import RAY, Pulse, RemoteSource
from drqn_dist.distributed.placement import Placement
from drqn_dist.fragment import WindowBatch
from drqn_dist.interfaces import EnvSpec, WindowSample
from drqn_dist.seeding import derive_seed
from drqn_dist.training.memory import batches_per_call, batches_per_draw
from learner.window_reader import WindowReader
from replay_server.rate_limiter import Balance
from replay_server.replay import ReplayStats, make_shard
from replay_server.shards import ShardTally

OPERATIONS = ("push", "sample", "priorities")
"""What a replay is called for."""


@dataclass(frozen=True)
class ReplayPulse(Pulse):
    """What the replay holds, and what a new one would need to go on counting."""

    stats: ReplayStats | None = None
    state: dict[str, Any] | None = None


@dataclass
class ReplayWork:
    """What a replay process has done since it was started."""

    cpu_s: float = 0.0
    """CPU seconds of the process, Ray's threads included."""
    calls: int = 0
    """Finished ones of other processes, but for pulses and the like."""
    operations: dict[str, float] = field(default_factory=lambda: dict.fromkeys(OPERATIONS, 0.0))
    """By kind: fragments pushed; batches sampled, or the part of each that this shard gave; calls with priorities."""
    own_cpu_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(OPERATIONS, 0.0))
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
    """Replay, or a shard of it, in a process of its own. Pushes, samples and everything else have threads of their own,
    so that a push that waits for the rate limiter does not keep a sample from being answered."""

    def __init__(self, config: TrainConfig, shard: int, batches_per_draw: int) -> None:
        self._replay = make_shard(config, shard, batches_per_draw)
        self._batch_windows = config.learner.batch_windows
        self._begun = threading.Event()
        self._work, self._work_lock = ReplayWork(), threading.Lock()

    def begin(self, state: dict[str, Any] | None) -> Pulse:
        """Goes on from these counters, if there are any, and lets waiting pushes and samples in."""
        if not self._begun.is_set():
            if state is not None:
                self._replay.set_state(state)
            self._begun.set()
        return Pulse()

    @ray.method(concurrency_group="push")
    def push(self, payloads: Sequence[bytes]) -> None:
        self._begun.wait()
        with self._counted("push") as work:
            for payload in payloads:
                self._replay.push(payload)
                work.operations["push"] += 1

    @ray.method(concurrency_group="sample")
    def sample(
        self, count: int, call_steps: int, elsewhere: Balance | None, timeout_s: float
    ) -> tuple[WindowSample | None, ShardTally]:
        self._begun.wait()
        with self._counted("sample") as work:
            sample, tally = self._replay.sample_share(count, call_steps, elsewhere, timeout_s)
            work.operations["sample"] += count / self._batch_windows if sample is not None else 0
        return sample, tally

    def update_priorities(self, ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]) -> None:
        with self._counted("priorities") as work:
            work.operations["priorities"] += 1
            self._replay.update_priorities(ids, priorities)

    def pulse(self) -> ReplayPulse | None:
        """None before `begin`."""
        if not self._begun.is_set():
            return None
        return ReplayPulse(stats=self._replay.stats(), state=self._replay.get_state())

    def work(self) -> ReplayWork:
        with self._work_lock:
            done = self._work
            return ReplayWork(time.process_time(), done.calls, dict(done.operations), dict(done.own_cpu_s))

    @contextmanager
    def _counted(self, kind: str) -> Iterator[ReplayWork]:
        done = ReplayWork()
        start = time.thread_time()  # which stands still while the rate limiter keeps a call waiting
        yield done
        spent = time.thread_time() - start
        with self._work_lock:
            self._work.calls += 1
            self._work.operations[kind] += done.operations[kind]
            self._work.own_cpu_s[kind] += spent


class LoaderRole:
    """Draws and decodes batches in a process of its own, beside the learner's."""

    def __init__(self, config: TrainConfig, spec: EnvSpec, run: str, index: int) -> None:
        seed = derive_seed(config.seed, "loader", index)
        learner = config.learner
        self._source = RemoteSource(find_replay(config, run), learner.batch_windows, learner.unroll_steps, seed)
        self._reader = WindowReader(config, spec)
        self._batches_per_draw = batches_per_draw(config, spec)
        self._drawn: deque[WindowSample] = deque()
        count = batches_per_call(config, spec)
        self._buffers = [self._reader.empty(config.learner.batch_windows) for _ in range(count)]
        self._batch_bytes = sum(value.nbytes for value in vars(self._buffers[0]).values() if hasattr(value, "nbytes"))
        self._work = LoaderWork()

    def load(self) -> list[WindowBatch]:
        """The next batches; Ray copies them before the next call overwrites them."""
        start = time.perf_counter()
        if not self._drawn:
            self._drawn.extend(self._source.sample(self._batches_per_draw))
        samples = [self._drawn.popleft() for _ in self._buffers]
        received = time.perf_counter()
        batches = [self._reader.read(sample, buffer) for sample, buffer in zip(samples, self._buffers, strict=True)]
        done = self._work
        self._work = LoaderWork(
            batches=done.batches + len(batches),
            wait_s=done.wait_s + received - start,
            decode_s=done.decode_s + time.perf_counter() - received,
            sample_bytes=self._source.received_bytes,
            batch_bytes=done.batch_bytes + len(batches) * self._batch_bytes,
        )
        return batches

    @ray.method(concurrency_group="pulse")
    def pulse(self) -> Pulse:
        """A sign of life, also while the rate limiter keeps a sample waiting."""
        return Pulse()

    @ray.method(concurrency_group="pulse")
    def work(self) -> LoaderWork:
        return replace(self._work, cpu_s=time.process_time())


def start_replay(
    config: TrainConfig,
    spec: EnvSpec,
    run: str,
    states: Sequence[dict[str, Any] | None] | None = None,
    where: Placement | None = None,
) -> list[Any]:
    """The processes of the replay's shards, told to begin; Ray starts each again if it dies, and then it waits for
    another `begin`.

    Args:
        run: a name that no other run has; find_replay finds them by it.
        states: of the shards, to go on from.
        where: room reserved for them; None leaves it to Ray.
    """
    groups = {"push": 4, "sample": config.learner.loaders}
    remote = RAY.remote(num_cpus=1, max_restarts=-1, concurrency_groups=groups)(ReplayRole)
    shards = []
    for shard in range(config.replay.shards):
        options = where.replay(shard) if where else {}
        named = remote.options(name=_replay_name(run, shard), **options)
        handle = named.remote(config, shard, batches_per_draw(config, spec))
        handle.begin.remote(states[shard] if states is not None else None)
        shards.append(handle)
    return shards


def find_replay(config: TrainConfig, run: str) -> list[Any]:
    """The shards that `start_replay` started. By name, because Ray cannot promise to start an actor again whose
    arguments hold handles."""
    return [ray.get_actor(_replay_name(run, shard)) for shard in range(config.replay.shards)]


def start_loaders(config: TrainConfig, spec: EnvSpec, run: str, where: Placement | None = None) -> list[Any]:
    """Loader processes; Ray starts them again if they die. They live as long as these handles."""
    remote = RAY.remote(num_cpus=1, max_restarts=-1, concurrency_groups={"pulse": 1})(LoaderRole)
    return [
        remote.options(name=_loader_name(run, index), **(where.loader(index) if where else {})).remote(
            config, spec, run, index
        )
        for index in range(config.learner.loaders)
    ]


def find_loaders(config: TrainConfig, run: str) -> list[Any]:
    """The loaders that `start_loaders` started."""
    return [ray.get_actor(_loader_name(run, index)) for index in range(config.learner.loaders)]


def _replay_name(run: str, shard: int) -> str:
    return f"{run}-replay-{shard}"


def _loader_name(run: str, index: int) -> str:
    return f"{run}-loader-{index}"
