"""A learner on fixed batches, and what it answers."""

from __future__ import annotations

from typing import Any, Literal

import torch

from drqn_dist.config import TrainConfig
from drqn_dist.interfaces import EnvSpec
from learner.learner import Learner
from learner.weight_publisher import WeightPublisher
from tests.fakes import FakePriorities
from tests.learner.batches import FixedDraws, Game, some_batches, some_game
from tests.learner.reading import Read, full_plan
from tests.tiny import VECTOR, tiny_config

PRIORITIZED = {"prioritized": True, "importance_exponent": 0.6}


class Bench:
    def __init__(
        self,
        config: TrainConfig,
        count: int = 3,
        first: int = 0,
        spec: EnvSpec = VECTOR,
        game: Game | None = None,
        place: Literal["device", "host"] = "device",
        threaded: bool = False,
    ) -> None:
        self.config, self.spec, self.count = config, spec, count
        self.game = game or some_game(config, spec)
        self.priorities, self.publisher = FakePriorities(), WeightPublisher()
        source = FixedDraws(config, self.game, count, first)
        plan = full_plan(config, spec, place)
        self.learner = Learner(config, spec, source, self.priorities, self.publisher, plan, threaded)

    def batches(self) -> list[Read]:
        """What it trains on, read apart from it."""
        return some_batches(self.config, self.count, self.spec, self.game)

    def update(self, times: int = 1) -> None:
        for _ in range(times):
            self.learner.update()

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.learner.state.network.parameters()]


def bench(count: int = 3, **sections: Any) -> Bench:
    return Bench(tiny_config(**sections), count)
