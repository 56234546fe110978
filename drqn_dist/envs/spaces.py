"""Gymnasium spaces → what the networks take."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from drqn_dist.errors import EnvError

Observations = npt.NDArray[np.uint8] | npt.NDArray[np.float32]

SUPPORTED_OBSERVATIONS = (
    "Box uint8 [H, W], [H, W, C] or [C, H, W] (images), Box [D] (vectors), Discrete, MultiDiscrete [D], MultiBinary "
    "[D], and Tuple and Dict of these except images"
)
MOST_ACTIONS = 256
"""To which a MultiDiscrete action space is multiplied out."""


@dataclass(frozen=True)
class ObservationEncoder:
    """How a batch of one space's observations becomes network input."""

    shape: tuple[int, ...]
    """[C, H, W] for images, [D] for vectors."""
    dtype: str
    """uint8 or float32."""
    encode: Callable[[Any], Observations]
    """[N, *space.shape], or a tuple or dict of such, → `dtype` [N, *shape]."""


def observation_encoder(space: spaces.Space[Any], env_id: str) -> ObservationEncoder:
    """Chooses the encoding of a space.

    An image's channels are its last axis, as is Gymnasium's custom, unless the first one is shorter. Discrete
    observations become one-hot vectors. The parts of a Tuple, or of a Dict in its own order, stand side by side.

    Raises:
        EnvError: the space is not supported.
    """
    if isinstance(space, spaces.Box):
        if len(space.shape) == 1:
            return ObservationEncoder(space.shape, "float32", lambda batch: batch.astype(np.float32))
        if space.dtype == np.uint8 and len(space.shape) == 2:
            return ObservationEncoder((1, *space.shape), "uint8", lambda batch: batch[:, None])
        if space.dtype == np.uint8 and len(space.shape) == 3:
            if space.shape[0] < space.shape[2]:
                return ObservationEncoder(space.shape, "uint8", lambda batch: batch)
            height, width, channels = space.shape
            return ObservationEncoder(
                (channels, height, width),
                "uint8",
                lambda batch: np.ascontiguousarray(np.moveaxis(batch, -1, 1)),
            )
    if isinstance(space, spaces.Discrete):
        return _one_hot_encoder(np.array([space.n]), np.array([space.start]))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return _one_hot_encoder(space.nvec, space.start)
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return ObservationEncoder(space.shape, "float32", lambda batch: batch.astype(np.float32))
    if isinstance(space, spaces.Tuple):
        return _side_by_side(dict(enumerate(space.spaces)), env_id)
    if isinstance(space, spaces.Dict):
        return _side_by_side(dict(space.spaces), env_id)
    raise EnvError(
        f"{env_id} has the observation space {_in_one_line(space)}, which is not supported; supported are "
        f"{SUPPORTED_OBSERVATIONS}. Gymnasium's wrappers FlattenObservation and TransformObservation can convert others"
    )


def _side_by_side(parts: dict[Any, spaces.Space[Any]], env_id: str) -> ObservationEncoder:
    encoders = {}
    for key, space in parts.items():
        encoders[key] = observation_encoder(space, env_id)
        if encoders[key].dtype == "uint8":
            raise EnvError(
                f"{env_id} has an image, {_in_one_line(space)}, beside other observations (part {key!r}); the networks "
                "here take one image or one vector. A wrapper that leaves one of them can help: env.wrappers"
            )
    width = sum(encoder.shape[0] for encoder in encoders.values())
    return ObservationEncoder(
        (width,),
        "float32",
        lambda batch: np.concatenate([encoder.encode(batch[key]) for key, encoder in encoders.items()], axis=1),
    )


def batch_of_one(space: spaces.Space[Any], observation: Any) -> Any:
    """One observation as `ObservationEncoder.encode` takes a batch."""
    if isinstance(space, spaces.Tuple):
        return tuple(batch_of_one(part, value) for part, value in zip(space.spaces, observation, strict=True))
    if isinstance(space, spaces.Dict):
        return {key: batch_of_one(part, observation[key]) for key, part in space.spaces.items()}
    return np.asarray(observation)[None]


def _one_hot_encoder(sizes: npt.NDArray[Any], starts: npt.NDArray[Any]) -> ObservationEncoder:
    sizes = sizes.astype(np.int64)  # spaces may be unsigned, in which nothing can be subtracted
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]) - starts.astype(np.int64)
    width = int(sizes.sum())

    def encode(batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        out = np.zeros((batch.shape[0], width), dtype=np.float32)
        np.put_along_axis(out, batch.reshape(batch.shape[0], -1).astype(np.int64) + offsets, 1.0, axis=1)
        return out

    return ObservationEncoder((width,), "float32", encode)


@dataclass(frozen=True)
class ActionDecoder:
    """How the numbers 0 to num_actions - 1 become an environment's own actions."""

    num_actions: int
    decode: Callable[[npt.NDArray[np.int64]], npt.NDArray[Any]]
    """int64 [N] → [N], or [N, D] for MultiDiscrete, of the space's dtype."""


def action_decoder(space: spaces.Space[Any], env_id: str) -> ActionDecoder:
    """Numbers the actions of a Discrete space, or all combinations of a small MultiDiscrete one, the last part fastest.

    Raises:
        EnvError: the space is of another kind, or has too many combinations.
    """
    dtype = space.dtype
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return ActionDecoder(int(space.n), lambda actions: (actions + start).astype(dtype))
    if (
        isinstance(space, spaces.MultiDiscrete)
        and space.nvec.ndim == 1
        and math.prod(space.nvec.tolist()) <= MOST_ACTIONS
    ):
        sizes, starts = tuple(space.nvec.tolist()), space.start.astype(np.int64)
        return ActionDecoder(
            math.prod(sizes),
            lambda actions: (np.stack(np.unravel_index(actions, sizes), axis=-1) + starts).astype(dtype),
        )
    raise EnvError(
        f"{env_id} has the action space {_in_one_line(space)}, which is not supported; Q-learning here needs a "
        f"Discrete action space, or a MultiDiscrete one of at most {MOST_ACTIONS} combinations"
    )


def _in_one_line(space: spaces.Space[Any]) -> str:
    return " ".join(str(space).split())


def recorded_spaces(shape: tuple[int, ...], dtype: str, num_actions: int) -> tuple[spaces.Box, spaces.Discrete]:
    """Spaces of what is kept of steps: observations as the network takes them, actions by their number."""
    if dtype == "uint8":
        return spaces.Box(0, 255, shape, np.uint8), spaces.Discrete(num_actions)
    return spaces.Box(-np.inf, np.inf, shape, np.float32), spaces.Discrete(num_actions)
