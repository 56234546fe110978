"""A learner on fixed batches, and what it answers."""

from __future__ import annotations

from typing import Any

import torch

from drqn_dist.config import TrainConfig
from drqn_dist.interfaces import EnvSpec
from learner.batch_loader import TensorBatch
from learner.learner import Learner
from learner.weight_publisher import WeightPublisher
from tests.fakes import FakePriorities
from tests.learner.batches import FixedBatches, some_batches
from tests.tiny import VECTOR, tiny_config

PRIORITIZED = {"prioritized": True, "importance_exponent": 0.6}


class Bench:
    def __init__(self, config: TrainConfig, batches: list[TensorBatch], first: int = 0, spec: EnvSpec = VECTOR) -> None:
        self.batches = batches
        self.priorities, self.publisher = FakePriorities(), WeightPublisher()
        self.learner = Learner(config, spec, FixedBatches(batches, first), self.priorities, self.publisher)

    def update(self, times: int = 1) -> None:
        for _ in range(times):
            self.learner.update()

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.learner.state.network.parameters()]


def bench(count: int = 3, **sections: Any) -> Bench:
    config = tiny_config(**sections)
    return Bench(config, some_batches(config, count))
