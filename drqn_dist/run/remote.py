"""Ray's edge: each plain role behind a thin remote class, and the calls between roles as the Protocols of
`interfaces.py`. Nothing here decides anything; the supervisor does."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from actors.actor import Actor, ActorStats
from actors.evaluator import Evaluation, Evaluator
from drqn_dist.config import TrainConfig
from drqn_dist.errors import ConfigError
from drqn_dist.interfaces import EnvSpec, WeightSnapshot, WindowSample
from drqn_dist.run.serial import make_replay
from drqn_dist.run.session import Saved
from learner.batch_loader import PrefetchLoader
from learner.learner import Learner, LearnerStats, resolve_device
from learner.weight_publisher import WeightPublisher
from learner.window_reader import WindowReader
from replay_server.replay import ReplayStats

SAMPLES_IN_FLIGHT = 2
"""Sample requests that the learner keeps under way: one travels while the other is decoded."""
PRIORITIES_IN_FLIGHT = 16
"""Priority updates sent but not acknowledged, before the learner waits."""
RETRY_S = 60.0
"""How long a call to a role that is being restarted is tried again."""


class ReplayRole:
    """Replay in a process of its own. Pushes, samples and everything else have threads of their own, so that a
    push that waits for the rate limiter does not keep a sample from being answered."""

    def __init__(self, config: TrainConfig) -> None:
        self._replay = make_replay(config)

    @ray.method(concurrency_group="push")
    def push(self, payload: bytes) -> bool:
        return self._replay.push(payload)

    @ray.method(concurrency_group="sample")
    def sample(self) -> WindowSample:
        return self._replay.sample()

    def update_priorities(self, ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]) -> None:
        self._replay.update_priorities(ids, priorities)

    def stats(self) -> ReplayStats:
        return self._replay.stats()

    def get_state(self) -> dict[str, Any]:
        return self._replay.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._replay.set_state(state)

    def stop(self) -> None:
        self._replay.stop()


class LearnerRole:
    """Learner in a process of its own; weights are served from a thread beside the training."""

    def __init__(self, config: TrainConfig, spec: EnvSpec, replay_name: str) -> None:
        # By name, because Ray cannot promise to start an actor again whose arguments hold handles.
        replay = ray.get_actor(replay_name)
        # Training runs thousands of short operations a second and takes the interpreter's lock after each; by default
        # a loader thread that holds it would give it up only after 5 ms.
        sys.setswitchinterval(2e-4)
        self._config = config
        self._publisher = WeightPublisher()
        self._ref: tuple[int, ray.ObjectRef[WeightSnapshot]] | None = None
        self._loader = PrefetchLoader(
            _RemoteSource(replay),
            WindowReader(config, spec),
            config.learner.batch_windows,
            resolve_device(config.learner.device),
            config.learner.prefetch_batches,
            config.learner.loader_threads,
        )
        self._learner = Learner(config, spec, self._loader, _RemotePriorities(replay), self._publisher)

    def run(self, seconds: float) -> LearnerStats:
        torch.set_num_threads(self._config.learner.torch_threads)  # a thread's own setting, and this is a new one
        return self._learner.run(seconds)

    def save(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        # What is evaluated after a save must be what was saved.
        self._publisher.publish(self._learner.state.network, self._learner.state.updates)
        return self._learner.save()

    def load(self, saved: Saved) -> None:
        self._learner.load(saved.tensors, saved.meta["learner"])

    @ray.method(concurrency_group="weights")
    def latest(self, known_version: int) -> list[ray.ObjectRef[WeightSnapshot]]:
        """The newest snapshot's reference in a list (so that it is not resolved on the way), or an empty list.

        Each version is put into the object store once, however many actors ask for it.
        """
        snapshot = self._publisher.latest(known_version)
        if snapshot is None:
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
        sink = _RemoteSink(replay, config.actor.max_pushes_in_flight)
        self._actor = Actor(config, index, sink, _RemoteWeights(learner), agent_steps, incarnation)

    def run(self, seconds: float) -> ActorStats:
        torch.set_num_threads(self._config.actor.torch_threads)
        return self._actor.run(seconds)


class EvaluatorRole:
    """Evaluator in a process of its own."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._evaluator = Evaluator(config, config.eval.episodes)

    def evaluate(self, learner: Any, seed: int) -> Evaluation:
        torch.set_num_threads(self._config.actor.torch_threads)
        (ref,) = ray.get(learner.latest.remote(-1))
        return self._evaluator.evaluate(ray.get(ref), seed)


class _RemoteSink:
    """Pushes to the replay; at most `limit` are unacknowledged, and one that a failure made doubtful is sent again
    (the replay drops duplicates)."""

    def __init__(self, replay: Any, limit: int) -> None:
        self._replay, self._limit = replay, limit
        self._in_flight: deque[tuple[ray.ObjectRef[bool], bytes]] = deque()

    def push(self, payload: bytes) -> None:
        while len(self._in_flight) >= self._limit:
            self._settle(*self._in_flight.popleft())
        self._in_flight.append((self._replay.push.remote(payload), payload))

    def _settle(self, ref: ray.ObjectRef[bool], payload: bytes) -> None:
        deadline = time.monotonic() + RETRY_S
        while True:
            try:
                ray.get(ref)
                return
            except RayActorError as error:
                _wait_for_restart(error, deadline)
                ref = self._replay.push.remote(payload)


class _RemoteSource:
    """Draws from the replay, some requests ahead. Each loader thread may call it."""

    def __init__(self, replay: Any) -> None:
        self._replay = replay
        self._lock = threading.Lock()
        self._in_flight: deque[ray.ObjectRef[WindowSample]] = deque()

    def sample(self) -> WindowSample:
        deadline = time.monotonic() + RETRY_S
        while True:
            with self._lock:
                while len(self._in_flight) < SAMPLES_IN_FLIGHT:
                    self._in_flight.append(self._replay.sample.remote())
                ref = self._in_flight.popleft()
            try:
                return ray.get(ref)
            except RayActorError as error:
                _wait_for_restart(error, deadline)
            except RayTaskError as error:
                raise error.cause or error from error


class _RemotePriorities:
    """Sends priorities without waiting for them, up to a bound. Those on their way to a replay that dies are lost
    with the windows they belong to."""

    def __init__(self, replay: Any) -> None:
        self._replay = replay
        self._in_flight: deque[ray.ObjectRef[None]] = deque()

    def update_priorities(self, ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]) -> None:
        while len(self._in_flight) >= PRIORITIES_IN_FLIGHT:
            with contextlib.suppress(RayActorError):
                ray.get(self._in_flight.popleft())
        self._in_flight.append(self._replay.update_priorities.remote(ids, priorities))


class _RemoteWeights:
    """Asks the learner for newer weights, one request under way, without waiting — except for the very first."""

    def __init__(self, learner: Any) -> None:
        self._learner = learner
        self._request: ray.ObjectRef[list[ray.ObjectRef[WeightSnapshot]]] | None = None

    def latest(self, known_version: int) -> WeightSnapshot | None:
        if self._request is None:
            self._request = self._learner.latest.remote(known_version)
        wait_s = 0 if known_version >= 0 else RETRY_S
        if not ray.wait([self._request], timeout=wait_s)[0]:
            return None
        request, self._request = self._request, None
        # A learner that is just being restarted answers later; the old weights serve until then.
        with contextlib.suppress(RayActorError, ray.exceptions.ObjectLostError):
            for ref in ray.get(request):
                return ray.get(ref)
        return None


def _wait_for_restart(error: RayActorError, deadline: float) -> None:
    """Returns after a moment if the role is being restarted, otherwise raises."""
    if not isinstance(error, ActorUnavailableError) or time.monotonic() > deadline:
        raise error
    time.sleep(0.2)  # Ray offers nothing to wait on here


class LocalRay:
    """A Ray of our own on this machine, or a connection to a cluster; a context manager.

    An own Ray listens to no one without a token made for this run, keeps its files in a folder of its own that is
    removed at the end, and starts no dashboard.
    """

    def __init__(self, address: str | None, cpus: int) -> None:
        """
        Raises:
            ConfigError: the cluster could not be joined.
        """
        self._folder: str | None = None
        self._environment: dict[str, str | None] = {}
        if ray.is_initialized():
            self._owned = False
            return
        self._owned = True
        if address is not None:
            self._set("RAY_AUTH_MODE", os.environ.get("RAY_AUTH_MODE", "token"))
            _reread_authentication()
            try:
                ray.init(address=address, logging_level="error", namespace="drqn-dist")
            except (ConnectionError, RuntimeError, ValueError) as error:
                self.close()
                raise ConfigError(
                    f"cannot join the Ray cluster at {address}: {error}; check --address and the cluster's token"
                ) from error
            return
        self._set("RAY_AUTH_MODE", "token")
        self._set("RAY_AUTH_TOKEN", secrets.token_hex(32))
        self._set("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # glibc otherwise returns every array of a training step to the kernel and faults it in again: 5 to 10 %.
        self._set("MALLOC_MMAP_THRESHOLD_", str(1024**3))
        self._set("MALLOC_TRIM_THRESHOLD_", str(1024**3))
        _reread_authentication()
        self._folder = tempfile.mkdtemp(prefix="drqn-ray-")
        ray.init(
            num_cpus=cpus,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=self._folder,
            object_store_memory=512 * 1024**2,
            logging_level="error",
            log_to_driver=False,
            namespace="drqn-dist",
        )

    def close(self) -> None:
        if self._owned and ray.is_initialized():
            ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._environment = {}

    def _set(self, name: str, value: str) -> None:
        self._environment.setdefault(name, os.environ.get(name))
        os.environ[name] = value


def _reread_authentication() -> None:
    """Ray reads RAY_AUTH_* once, when it is imported; this makes it read them again (as its own `ray.init` does)."""
    ray._raylet.Config.initialize("")
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


def start_replay(config: TrainConfig, name: str) -> Any:
    """A replay process; Ray starts it again, empty, if it dies."""
    groups = {"push": 4, "sample": SAMPLES_IN_FLIGHT}
    remote = ray.remote(num_cpus=1, max_restarts=-1, concurrency_groups=groups)(ReplayRole)
    return remote.options(name=name).remote(config)


def start_learner(config: TrainConfig, spec: EnvSpec, replay_name: str) -> Any:
    """A learner process, on a GPU if it is to use one; Ray starts it again, with fresh weights, if it dies."""
    gpus = 1 if config.learner.device.startswith("cuda") else 0
    if config.learner.device == "auto" and ray.cluster_resources().get("GPU", 0) >= 1:
        gpus = 1
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=-1, concurrency_groups={"weights": 1})(LearnerRole)
    return remote.remote(config, spec, replay_name)


def start_actor(
    config: TrainConfig, index: int, replay: Any, learner: Any, agent_steps: int, incarnation: int
) -> Any:
    """An actor process; if it dies the supervisor starts another incarnation."""
    remote = ray.remote(num_cpus=1)(ActorRole)
    return remote.remote(config, index, replay, learner, agent_steps, incarnation)


def start_evaluator(config: TrainConfig) -> Any:
    """An evaluator process; if it dies the supervisor starts another one."""
    return ray.remote(num_cpus=1)(EvaluatorRole).remote(config)
