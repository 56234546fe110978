"""Real play to measure with, and a replay full of it."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from actors.actor import Actor
from drqn_dist.codec import decode, encode
from drqn_dist.config import ReplayConfig, TrainConfig
from drqn_dist.interfaces import EnvSpec
from drqn_dist.network.q_network import QNetwork
from learner.weight_publisher import WeightPublisher
from replay_server.replay import Replay

NEVER_BLOCKS_STEPS = 10**9
MAX_STEPS = 100_000
"""A replay measured for speed holds the configured capacity, at most this much."""


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


def unblocked(config: ReplayConfig, capacity_steps: int) -> ReplayConfig:
    """The same replay, of another capacity, with a rate limiter that lets everyone through."""
    return replace(
        config,
        capacity_steps=capacity_steps,
        capacity_bytes=2**50,
        min_steps=1,
        rate_tolerance_steps=NEVER_BLOCKS_STEPS,
    )


def copies(payloads: list[bytes], max_bytes: int) -> Iterator[list[bytes]]:
    """The fragments again and again, each time as those of another actor, in bytes of their own."""
    for actor_id in itertools.count(1):
        yield [encode(replace(decode(payload, max_bytes), actor_id=actor_id)) for payload in payloads]


def fill(replay: Replay, supply: Iterator[list[bytes]], steps: int) -> None:
    """Pushes fragments until the replay has received so many steps."""
    for pieces in supply:
        for piece in pieces:
            if replay.stats().inserted_steps >= steps:
                return
            replay.push(piece)
