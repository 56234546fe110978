"""Configurations and networks so small that a test takes milliseconds."""

from __future__ import annotations

from typing import Any

import torch

from drqn_dist.config import ActorConfig, EnvConfig, EvalConfig, LearnerConfig, NetworkConfig, ReplayConfig, TrainConfig
from drqn_dist.interfaces import EnvSpec
from drqn_dist.network.q_network import QNetwork

IMAGE = EnvSpec((1, 36, 36), "uint8", num_actions=3, frames_per_step=4)
VECTOR = EnvSpec((3,), "float32", num_actions=4, frames_per_step=1)

_DEFAULTS: dict[str, dict[str, Any]] = {
    "env": {},
    "network": {"torso": "mlp", "torso_units": 8, "core_units": 8, "head": "linear", "precision": "fp32"},
    "learner": {"batch_windows": 4, "unroll_steps": 4, "device": "cpu"},
    "replay": {"capacity_steps": 10_000, "min_steps": 1, "samples_per_insert": 1e6, "prioritized": False},
    "actor": {
        "envs_per_actor": 2,
        "fragment_steps": 8,
        "push_period_steps": 1,
        "epsilon_low": 0.5,
        "epsilon_high": 0.5,
    },
    "eval": {},
}
_SECTIONS = {
    "env": EnvConfig,
    "network": NetworkConfig,
    "learner": LearnerConfig,
    "replay": ReplayConfig,
    "actor": ActorConfig,
    "eval": EvalConfig,
}


def tiny_config(**changes: Any) -> TrainConfig:
    """A tiny run; `changes` are fields of TrainConfig, or tables of one of its sections."""
    sections = {name: cls(**(_DEFAULTS[name] | changes.pop(name, {}))) for name, cls in _SECTIONS.items()}
    return TrainConfig(**sections, **changes)


def make_network(config: TrainConfig, spec: EnvSpec, seed: int = 0, gain: float = 1.0) -> QNetwork:
    """A network with random weights, different for different seeds.

    With a gain of 3 its best action changes from step to step and hangs on its state; with PyTorch's own weights it is
    mostly the same one.
    """
    torch.manual_seed(seed)
    network = QNetwork(config.network, spec, config.env.stack_frames)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(gain)
    return network
