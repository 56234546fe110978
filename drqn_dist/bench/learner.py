"""The learner in the full pipeline beside the same update on one batch that is always there."""

import math
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

import psutil
import ray
import torch

from drqn_dist.bench import BenchSettings, Figures
from drqn_dist.bench.play import MAX_STEPS, play, unblocked
from drqn_dist.config import TrainConfig
from drqn_dist.distributed import remote, remote_replay
from drqn_dist.distributed.channels import RAY
from drqn_dist.distributed.local_ray import LocalRay
from drqn_dist.distributed.placement import learner_gpus
from drqn_dist.envs.make import env_spec
from drqn_dist.training.memory import STORE_BYTES
from learner.feed import WAITING_DRAWS
from learner.learner import Learner


def bench(config: TrainConfig, settings: BenchSettings) -> dict[str, Any]:
    """Updates per second of a learner process that draws from a filled replay process through Ray and sends priorities
    back, while nobody acts, and of the bare update in the same process; measured in turn.

    Returns:
        updates_per_s, bare_updates_per_s, ratio (of the one over the other), transitions_per_s (of batch_windows ·
        unroll_steps an update), cpu_s_per_1000_transitions (of all processes, Ray's too, in the full pipeline), spread;
        env, device, batch_windows, unroll_steps.
    """
    capacity = min(config.replay.capacity_steps, MAX_STEPS)
    config = replace(config, mode="ray", replay=replace(unblocked(config.replay, capacity), shards=1))
    spec = env_spec(config.env)
    payloads = play(config, spec, settings.play_steps)
    transitions = config.learner.batch_windows * config.learner.unroll_steps
    figures = Figures()
    with closing(LocalRay(None, cpus=2, store_bytes=STORE_BYTES)):
        run = f"bench-{uuid.uuid4().hex}"
        (replay,) = remote_replay.start_replay(config, run)
        ray.get(replay.push.remote(payloads))
        gpus = learner_gpus(config, lambda line: print(line, file=sys.stderr, flush=True))
        config = replace(config, learner=replace(config.learner, device="cuda" if gpus else "cpu"))
        role = RAY.remote(num_cpus=1, num_gpus=gpus, concurrency_groups={"weights": 1})(_LearnerRole)
        learner = role.remote(config, spec, run)
        device = ray.get(learner.catch_up.remote(len(payloads)))
        for _ in range(settings.repeats):
            bare = ray.get(learner.bare_updates_per_s.remote(settings.seconds))
            begun, cpu_s = ray.get(learner.updates.remote()), _cpu_s()
            full = ray.get(learner.updates_per_s.remote(settings.seconds))
            trained, cpu_s = transitions * (ray.get(learner.updates.remote()) - begun), _cpu_s() - cpu_s
            figures.add(
                updates_per_s=full,
                bare_updates_per_s=bare,
                ratio=full / bare,
                transitions_per_s=full * transitions,
                cpu_s_per_1000_transitions=1_000 * cpu_s / trained,
            )
    return figures.result() | {
        "env": config.env.id,
        "device": device,
        "batch_windows": config.learner.batch_windows,
        "unroll_steps": config.learner.unroll_steps,
    }


class _LearnerRole(remote.LearnerRole):
    """The real role, and its update on one batch."""

    def catch_up(self, fragments: int) -> str:
        """Trains until so many fragments have come; answers the device's name."""
        self._train_draws(math.ceil(fragments / self._plan.fresh_limit) + WAITING_DRAWS + 1)
        self._bare = bare_update(self._learner)
        device = next(self._learner.state.network.parameters()).device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    def updates(self) -> int:
        """So far."""
        return self._learner.state.updates

    def updates_per_s(self, seconds: float) -> float:
        """In the full pipeline."""
        self._train_draws(WAITING_DRAWS + 2)  # those prepared while the bare update ran would flatter it
        return rate_of(self._learner.update, seconds)

    def bare_updates_per_s(self, seconds: float) -> float:
        """On one batch that is always there."""
        torch.set_num_threads(self._config.learner.torch_threads)
        rate_of(self._bare, seconds / 4)
        return rate_of(self._bare, seconds)

    def _train_draws(self, draws: int) -> None:
        torch.set_num_threads(self._config.learner.torch_threads)  # a thread's own setting, and this may be a new one
        for _ in range(draws * self._config.batches_per_draw):
            self._learner.update()


def _cpu_s() -> float:
    """CPU seconds so far of this process and of all that it has started."""
    found, driver = 0.0, psutil.Process()
    for process in (driver, *driver.children(recursive=True)):
        with suppress(psutil.Error):  # it has just ended
            times = process.cpu_times()
            found += times.user + times.system
    return found


def bare_update(learner: Learner) -> Callable[[], object]:
    """This learner's update on its next batch, again and again; its priorities go nowhere."""
    batch = learner.feed.next()
    device = next(learner.state.network.parameters()).device
    places, weights = batch.places.to(device, copy=True), batch.weights.to(device, copy=True)
    gathered = batch.gathered and type(batch.gathered)(*(x.to(device) for x in batch.gathered))
    resident = batch._replace(places=places, weights=weights, gathered=gathered)
    return lambda: learner.step(resident)


def rate_of(update: Callable[[], object], seconds: float) -> float:
    """Updates per second, over those that were begun within this time, until the last of them was finished."""
    _await_device()
    start, updates = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or not updates:
        update()
        updates += 1
    _await_device()
    return updates / (time.perf_counter() - start)


def _await_device() -> None:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
