"""What one needs to step or watch a single environment outside the batch path."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from drqn_dist.config import EnvConfig
from drqn_dist.envs.atari import PREFIX
from drqn_dist.envs.spaces import Observations, discrete_actions, observation_encoder

_ATARI_FRAMES_PER_S = 60
_DEFAULT_STEPS_PER_S = 30.0
"""Where an environment does not say how fast it plays."""


@dataclass(frozen=True)
class SingleEnv:
    """How one environment, made by `gymnasium.make`, relates to the batch path."""

    raw_shape: tuple[int, ...]
    """Of one observation before it is encoded; Atari: [H, W] as AtariPreprocessing gives it in grey."""
    encode: Callable[[Any], Observations]
    """[N, *raw_shape] → [N, *EnvSpec.observation_shape]."""
    first_action: int
    """The environment's own number of action 0."""
    steps_per_s: float
    """Agent steps per second at which the environment plays in real time."""


def describe_single(config: EnvConfig) -> SingleEnv:
    """Describes an environment that `make_batch_env` accepts."""
    if config.id.startswith(PREFIX):
        space = spaces.Box(0, 255, (config.height_px, config.width_px), np.uint8)
        encode = observation_encoder(space, config.id).encode
        return SingleEnv(space.shape, encode, 0, _ATARI_FRAMES_PER_S / config.frame_skip)
    with closing(gymnasium.make(config.id, disable_env_checker=True, **config.kwargs)) as env:
        return SingleEnv(
            raw_shape=env.observation_space.shape or (),
            encode=observation_encoder(env.observation_space, config.id).encode,
            first_action=int(discrete_actions(env.action_space, config.id).start),
            steps_per_s=float(env.metadata.get("render_fps") or _DEFAULT_STEPS_PER_S),
        )
