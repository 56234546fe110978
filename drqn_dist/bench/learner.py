"""The learner in the full pipeline beside the same training step on one batch that is always there."""

from __future__ import annotations

import uuid
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch

from drqn_dist.bench import BenchSettings
from drqn_dist.bench.figures import Figures
from drqn_dist.bench.fill import unblocked
from drqn_dist.bench.play import frames_from, play
from drqn_dist.config import TrainConfig
from drqn_dist.distributed import remote, remote_replay
from drqn_dist.distributed.local_ray import LocalRay
from drqn_dist.envs.make import env_spec
from drqn_dist.interfaces import EnvSpec, WeightSnapshot
from drqn_dist.network.q_network import NetworkInput
from drqn_dist.training.memory import object_store_bytes
from learner.batch_loader import TensorBatch
from learner.learner import Learner
from learner.weight_publisher import WeightPublisher


def bench_learner(
    config: TrainConfig, settings: BenchSettings, weights: WeightSnapshot | None = None
) -> dict[str, Any]:
    """Updates per second of a learner process that draws from a filled replay process through Ray, decodes and sends
    priorities back, while no actor runs; and of the bare training step in the same process. Measured in turn.

    Returns:
        updates_per_s, bare_updates_per_s, ratio, spread; env, frames_from, batch_windows, unroll_steps.
    """
    config = replace(config, replay=replace(unblocked(config.replay, config.replay.capacity_steps), shards=1))
    spec = env_spec(config.env)
    payloads = play(config, spec, settings.play_steps, weights)
    figures = Figures()
    untyped: Any = ray  # its annotations know neither of these
    with closing(LocalRay(None, cpus=2 + config.learner.loaders, store_bytes=object_store_bytes(config, spec))):
        run = f"bench-{uuid.uuid4().hex}"
        (replay,) = remote_replay.start_replay(config, spec, run)
        ray.get(replay.push.remote(payloads))
        gpus = int(config.learner.device != "cpu" and untyped.cluster_resources().get("GPU", 0) >= 1)
        role = untyped.remote(num_cpus=1, num_gpus=gpus, concurrency_groups={"weights": 1})(_LearnerRole)
        loaders = remote_replay.start_loaders(config, spec, run)
        learner = role.remote(config, spec, run)
        for _ in range(settings.repeats):
            bare = ray.get(learner.bare_updates_per_s.remote(settings.seconds))
            full = ray.get(learner.updates_per_s.remote(settings.seconds))
            figures.add(updates_per_s=full, bare_updates_per_s=bare, ratio=full / bare)
        del loaders  # they end with their handles
    return figures.result() | {
        "env": config.env.id,
        "frames_from": frames_from(weights),
        "batch_windows": config.learner.batch_windows,
        "unroll_steps": config.learner.unroll_steps,
    }


class _LearnerRole(remote.LearnerRole):
    """The real role, and a second learner beside it that trains on one batch."""

    def __init__(self, config: TrainConfig, spec: EnvSpec, run: str) -> None:
        super().__init__(config, spec, run)
        self._bare = bare_learner(config, spec, self._loader.next())

    def updates_per_s(self, seconds: float) -> float:
        torch.set_num_threads(self._config.learner.torch_threads)  # a thread's own setting, and this is a new one
        # Batches that were loaded while the bare learner ran would flatter the pipeline.
        self._learner.run(seconds / 4)
        return updates_per_s(self._learner, seconds)

    def bare_updates_per_s(self, seconds: float) -> float:
        torch.set_num_threads(self._config.learner.torch_threads)
        self._bare.run(seconds / 4)
        return updates_per_s(self._bare, seconds)


def bare_learner(config: TrainConfig, spec: EnvSpec, batch: TensorBatch) -> Learner:
    """A learner that trains on a copy of this batch for ever; its priorities go nowhere."""
    return Learner(config, spec, _Resident(batch), _Nowhere(), WeightPublisher())


def updates_per_s(learner: Learner, seconds: float) -> float:
    """Over about this long."""
    stats = learner.run(seconds)
    return stats.new_updates / (stats.wait_s + stats.train_s)


class _Resident:
    """A BatchSource of one batch."""

    def __init__(self, batch: TensorBatch) -> None:
        # The loader reuses the tensors' memory; all else is the batch's own.
        copied: dict[str, Any] = {name: x.clone() for name, x in batch._asdict().items() if isinstance(x, torch.Tensor)}
        self._batch = batch._replace(inputs=NetworkInput(*(x.clone() for x in batch.inputs)), **copied)

    def next(self) -> TensorBatch:
        return self._batch

    def close(self) -> None:
        """Holds nothing."""


class _Nowhere:
    def update_priorities(self, ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]) -> None:
        """Drops them."""
