"""The front door of the environments: configuration in, `BatchEnv` out."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from drqn_dist.config import EnvConfig
from drqn_dist.envs import atari
from drqn_dist.envs.flicker import Flicker
from drqn_dist.envs.gym_batch import GymBatch, make_one
from drqn_dist.envs.spaces import ActionDecoder, Observations, action_decoder, batch_of_one, observation_encoder
from drqn_dist.interfaces import BatchEnv, EnvSpec

_ATARI_FRAMES_PER_S = 60
_DEFAULT_STEPS_PER_S = 30.0
"""Where an environment does not say how fast it plays."""
_AS_NUMBERED = ActionDecoder(0, lambda actions: actions)


@dataclass(frozen=True)
class SingleEnv:
    """How one environment, made by `gymnasium.make`, relates to the batch path."""

    raw_shape: tuple[int, ...]
    """Of one observation before it is encoded; Atari: [H, W] as AtariPreprocessing gives it in grey."""
    encode: Callable[[Any], Observations]
    """[N, *raw_shape] → [N, *EnvSpec.observation_shape]."""
    encode_one: Callable[[Any], Observations] | None
    """The same of one observation that is a tuple or dict; None where it is an array."""
    actions: ActionDecoder
    steps_per_s: float
    """Agent steps per second at which the environment plays in real time."""


class RenderEnv(BatchEnv, Protocol):
    """A batch of one environment that can be watched."""

    def render(self) -> npt.NDArray[np.uint8]:
        """The picture uint8 [H, W, 3] behind the present observation, not flickered."""
        ...


_Env = TypeVar("_Env", bound=BatchEnv)


def make_batch_env(config: EnvConfig, num_envs: int, num_threads: int = 1, seed: int = 0) -> BatchEnv:
    """Makes N environments that are stepped together.

    Args:
        config: which environment.
        num_envs: N, at least 1.
        num_threads: at most so many step them.
        seed: of the wrappers' own randomness (flicker); the games are seeded by `reset(seed)`.

    Raises:
        EnvError: the environment is unknown, cannot be made, or has spaces that are not supported.
    """
    env: BatchEnv
    if config.id.startswith(atari.PREFIX):
        env = atari.AtariBatch(config, num_envs, num_threads)
    else:
        env = GymBatch(config, num_envs, num_threads)
    return _with_flicker(env, config, seed)


def env_spec(config: EnvConfig) -> EnvSpec:
    """What an environment looks like, found by making one and closing it.

    Raises:
        EnvError: as `make_batch_env`.
    """
    env = make_batch_env(config, num_envs=1)
    env.close()
    return env.spec


def make_render_env(config: EnvConfig, seed: int = 0) -> RenderEnv:
    """Makes one environment that can be watched.

    Its observations, rewards and ends equal those of `make_batch_env(config, 1, seed=seed)` bit for bit, as long as a
    Gymnasium environment does not behave differently when it renders.

    Raises:
        EnvError: as `make_batch_env`, or the environment has no render mode rgb_array.
    """
    if config.id.startswith(atari.PREFIX):
        return _with_flicker(atari.AtariRender(config), config, seed)
    return _with_flicker(GymBatch(config, num_envs=1, render_mode="rgb_array"), config, seed)


def describe_single(config: EnvConfig) -> SingleEnv:
    """Describes an environment that `make_batch_env` accepts."""
    if config.id.startswith(atari.PREFIX):
        grey = spaces.Box(0, 255, (config.height_px, config.width_px), np.uint8)
        encode = observation_encoder(grey, config.id).encode
        return SingleEnv(grey.shape, encode, None, _AS_NUMBERED, _ATARI_FRAMES_PER_S / config.frame_skip)
    with closing(make_one(config)) as env:
        space = env.observation_space
        encode = observation_encoder(space, config.id).encode
        structured = isinstance(space, spaces.Tuple | spaces.Dict)
        return SingleEnv(
            raw_shape=space.shape or (),
            encode=encode,
            encode_one=(lambda observation: encode(batch_of_one(space, observation))) if structured else None,
            actions=action_decoder(env.action_space, config.id),
            steps_per_s=float(env.metadata.get("render_fps") or _DEFAULT_STEPS_PER_S),
        )


def _with_flicker(env: _Env, config: EnvConfig, seed: int) -> _Env:
    if config.flicker_probability == 0:
        return env
    try:
        return cast(_Env, Flicker(env, config.flicker_probability, seed))
    except Exception:
        env.close()
        raise
