"""Real play to measure with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from actors.actor import Actor
from drqn_dist.config import TrainConfig
from drqn_dist.interfaces import EnvSpec
from drqn_dist.network.q_network import QNetwork
from learner.weight_publisher import WeightPublisher


def untrained(config: TrainConfig, spec: EnvSpec) -> WeightPublisher:
    """Offers the weights of an untrained network."""
    torch.manual_seed(config.seed)
    publisher = WeightPublisher()
    publisher.publish(QNetwork(config.network, spec, config.env.stack_frames), version=0)
    return publisher


def play(config: TrainConfig, spec: EnvSpec, steps: int) -> list[bytes]:
    """Encoded fragments that one actor pushes in about so many agent steps, acting at random."""
    rates = replace(config.actor, epsilon_low=1.0, epsilon_high=1.0, epsilon_decay="none")
    sink = _Collector()
    actor = Actor(replace(config, actor=rates), 0, sink, untrained(config, spec))
    try:
        taken = 0
        while taken < steps or not sink.payloads:
            taken += actor.step()
    finally:
        actor.close()
    return sink.payloads


class _Collector:
    def __init__(self) -> None:
        self.payloads: list[bytes] = []

    def push(self, payloads: Sequence[bytes]) -> None:
        self.payloads += payloads
