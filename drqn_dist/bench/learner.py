"""The learner in the full pipeline beside the same update on one batch that is always there."""

from __future__ import annotations

import math
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch

from drqn_dist.bench import BenchSettings
from drqn_dist.bench.figures import Figures
from drqn_dist.bench.fill import MAX_STEPS, copies, unblocked
from drqn_dist.bench.play import frames_from, play
from drqn_dist.codec import decode_header
from drqn_dist.config import TrainConfig
from drqn_dist.distributed import remote, remote_replay
from drqn_dist.distributed.channels import RAY
from drqn_dist.distributed.local_ray import LocalRay
from drqn_dist.distributed.placement import learner_gpus
from drqn_dist.envs.make import env_spec
from drqn_dist.interfaces import EnvSpec, WeightSnapshot
from drqn_dist.training.memory import STORE_BYTES, plan_frame_store
from learner.feed import WAITING_DRAWS
from learner.learner import Learner
from learner.weight_publisher import WeightPublisher
from replay_server.replay import LocalSource, Replay

FEED_PERIOD_S = 0.05
"""How often the feeder looks how much has been trained."""


def bench_learner(
    config: TrainConfig, settings: BenchSettings, weights: WeightSnapshot | None = None
) -> dict[str, Any]:
    """Updates per second of a learner process that draws from a filled replay process through Ray and sends priorities
    back, and of the bare update in the same process. Measured in turn: bare; with idle actors; and fed, where fragments
    that were encoded before come at the configured samples per insert.

    Returns:
        updates_per_s, transitions_per_s (of batch_windows · unroll_steps an update) and cpu_s_per_1000_transitions (CPU
        time of learner and replay process) with idle actors; the same fed, with fed_ before their names;
        bare_updates_per_s; ratio (updates_per_s over it), spread; env, device, frames_from, batch_windows,
        unroll_steps.
    """
    ratio = config.replay.samples_per_insert
    capacity = min(config.replay.capacity_steps, MAX_STEPS)
    config = replace(config, mode="ray", replay=replace(unblocked(config.replay, capacity), shards=1))
    spec = env_spec(config.env)
    payloads = play(config, spec, settings.play_steps, weights)
    transitions = config.learner.batch_windows * config.learner.unroll_steps
    feeder = _Feeder(payloads, ratio, config.replay.max_fragment_bytes)
    figures = Figures()
    with closing(LocalRay(None, cpus=2, store_bytes=STORE_BYTES)):
        run = f"bench-{uuid.uuid4().hex}"
        (replay,) = remote_replay.start_replay(config, run)
        ray.get(replay.push.remote(payloads))
        gpus = learner_gpus(config, lambda line: print(line, file=sys.stderr, flush=True))
        role = RAY.remote(num_cpus=1, num_gpus=gpus, concurrency_groups={"weights": 1})(_LearnerRole)
        learner = role.remote(config, spec, run)
        device = ray.get(learner.catch_up.remote(len(payloads)))

        def feed(running: Any) -> None:
            feeder.run(
                lambda: bool(ray.wait([running], timeout=FEED_PERIOD_S)[0]),
                lambda: int(ray.get(replay.pulse.remote()).stats.sampled_steps),
                lambda fragments: ray.get(replay.push.remote(fragments)),
            )

        def measure(fed: bool) -> float:
            ray.get(learner.drain.remote())
            before = ray.get(replay.work.remote()).cpu_s
            running = learner.pipeline.remote(settings.seconds)
            if fed:
                feed(running)
            piece: Piece = ray.get(running)
            found = piece.figures(transitions, ray.get(replay.work.remote()).cpu_s - before)
            figures.add(**{"fed_" * fed + name: value for name, value in found.items()})
            return found["updates_per_s"]

        for _ in range(settings.repeats):
            bare = ray.get(learner.bare_updates_per_s.remote(settings.seconds))
            full = measure(fed=False)
            figures.add(bare_updates_per_s=bare, ratio=full / bare)
            feeder.encode(math.ceil(full * transitions * settings.seconds / ratio))
            measure(fed=True)
    return figures.result() | {
        "env": config.env.id,
        "device": device,
        "frames_from": frames_from(weights),
        "batch_windows": config.learner.batch_windows,
        "unroll_steps": config.learner.unroll_steps,
    }


class _Feeder:
    """Stands for actors: pushes fragments, each one once, while the learner trains."""

    def __init__(self, payloads: list[bytes], ratio: float, max_bytes: int) -> None:
        """
        Args:
            payloads: those pushed are copies of these.
            ratio: samples per insert.
        """
        self._supply = (payload for pieces in copies(payloads, max_bytes) for payload in pieces)
        self._ratio, self._max_bytes = ratio, max_bytes
        self._ready: deque[bytes] = deque()

    def encode(self, steps: int) -> None:
        """Has at least so many steps ready; what `run` needs beyond them it encodes meanwhile."""
        missing = steps - sum(map(self._steps, self._ready))
        while missing > 0:
            self._ready.append(next(self._supply))
            missing -= self._steps(self._ready[-1])

    def run(
        self, done: Callable[[], bool], sampled_steps: Callable[[], int], push: Callable[[list[bytes]], object]
    ) -> None:
        """Pushes as much as what is sampled asks for, until it is done."""
        before, pushed = sampled_steps(), 0
        while not done():
            owed = (sampled_steps() - before) / self._ratio
            fragments = []
            while pushed < owed:
                fragments.append(self._ready.popleft() if self._ready else next(self._supply))
                pushed += self._steps(fragments[-1])
            if fragments:
                push(fragments)

    def _steps(self, payload: bytes) -> int:
        return decode_header(payload, self._max_bytes).num_steps


@dataclass(frozen=True)
class Piece:
    """What the learner did in a measurement."""

    updates: int
    seconds: float
    cpu_s: float
    """Of its process."""

    def figures(self, transitions: int, replay_cpu_s: float) -> dict[str, float]:
        """
        Args:
            transitions: of an update.
            replay_cpu_s: CPU time of the replay's process meanwhile.
        """
        trained = self.updates * transitions
        return {
            "updates_per_s": self.updates / self.seconds,
            "transitions_per_s": trained / self.seconds,
            "cpu_s_per_1000_transitions": 1000 * (self.cpu_s + replay_cpu_s) / trained,
        }


class _LearnerRole(remote.LearnerRole):
    """The real role, and its update on one batch."""

    def catch_up(self, fragments: int) -> str:
        """Trains until so many fragments have come; answers the device's name."""
        torch.set_num_threads(self._config.learner.torch_threads)  # a thread's own setting, and this is a new one
        draws = math.ceil(fragments / self._plan.fresh_limit) + WAITING_DRAWS + 1
        for _ in range(draws * self._config.batches_per_draw):
            self._learner.update()
        self._bare = bare_update(self._learner)
        device = next(self._learner.state.network.parameters()).device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    def drain(self) -> None:
        """Draws that were prepared while the learner did something else would flatter the pipeline."""
        torch.set_num_threads(self._config.learner.torch_threads)
        for _ in range((WAITING_DRAWS + 2) * self._config.batches_per_draw):
            self._learner.update()

    def pipeline(self, seconds: float) -> Piece:
        torch.set_num_threads(self._config.learner.torch_threads)
        cpu_s = time.process_time()
        updates, elapsed = finished(self._learner.update, seconds)
        return Piece(updates, elapsed, time.process_time() - cpu_s)

    def bare_updates_per_s(self, seconds: float) -> float:
        torch.set_num_threads(self._config.learner.torch_threads)
        finished(self._bare, seconds / 4)
        updates, elapsed = finished(self._bare, seconds)
        return updates / elapsed


def bare_update(learner: Learner) -> Callable[[], object]:
    """This learner's update on its next batch, again and again; its priorities go nowhere."""
    batch = learner.feed.next()
    device = next(learner.state.network.parameters()).device
    places, weights = batch.places.to(device, copy=True), batch.weights.to(device, copy=True)
    gathered = batch.gathered and type(batch.gathered)(*(x.to(device) for x in batch.gathered))
    resident = batch._replace(places=places, weights=weights, gathered=gathered)
    return lambda: learner.step(resident)


def lonely_learner(config: TrainConfig, spec: EnvSpec, replay: Replay) -> Learner:
    """A learner beside this replay, in the same process and thread."""
    config = replace(config, mode="serial")
    source = LocalSource(replay, config.learner.batch_windows)
    return Learner(config, spec, source, _Nowhere(), WeightPublisher(), plan_frame_store(config, spec))


def finished(update: Callable[[], object], seconds: float) -> tuple[int, float]:
    """Updates that were begun within this time, and the seconds until the last of them was finished."""
    _await_device()
    start, updates = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or not updates:
        update()
        updates += 1
    _await_device()
    return updates, time.perf_counter() - start


def _await_device() -> None:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


class _Nowhere:
    def update_priorities(self, ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]) -> None:
        """Drops them."""
