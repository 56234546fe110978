"""Gymnasium spaces → what the networks take."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from drqn_dist.errors import EnvError

Observations = npt.NDArray[np.uint8] | npt.NDArray[np.float32]

SUPPORTED_OBSERVATIONS = (
    "Box uint8 [H, W], [H, W, C] or [C, H, W] (images), Box [D] (vectors), Discrete, MultiDiscrete [D] and "
    "MultiBinary [D]"
)


@dataclass(frozen=True)
class ObservationEncoder:
    """How a batch of one space's observations becomes network input."""

    shape: tuple[int, ...]
    """[C, H, W] for images, [D] for vectors."""
    dtype: str
    """uint8 or float32."""
    encode: Callable[[npt.NDArray[Any]], Observations]
    """[N, *space.shape] → `dtype` [N, *shape]."""


def observation_encoder(space: spaces.Space[Any], env_id: str) -> ObservationEncoder:
    """Chooses the encoding of a space.

    An image's channels are its last axis, as is Gymnasium's custom, unless the first one is shorter. Discrete
    observations become one-hot vectors.

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
    raise EnvError(
        f"{env_id} has the observation space {_in_one_line(space)}, which is not supported; supported are "
        f"{SUPPORTED_OBSERVATIONS}. Gymnasium's wrappers FlattenObservation and TransformObservation can convert others"
    )


def _one_hot_encoder(sizes: npt.NDArray[Any], starts: npt.NDArray[Any]) -> ObservationEncoder:
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]) - starts
    width = int(sizes.sum())

    def encode(batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        out = np.zeros((batch.shape[0], width), dtype=np.float32)
        np.put_along_axis(out, batch.reshape(batch.shape[0], -1) + offsets, 1.0, axis=1)
        return out

    return ObservationEncoder((width,), "float32", encode)


def discrete_actions(space: spaces.Space[Any], env_id: str) -> spaces.Discrete:
    """The space itself, if it is Discrete.

    Raises:
        EnvError: it is not.
    """
    if isinstance(space, spaces.Discrete):
        return space
    raise EnvError(
        f"{env_id} has the action space {_in_one_line(space)}, which is not supported; Q-learning here needs a "
        "Discrete action space"
    )


def _in_one_line(space: spaces.Space[Any]) -> str:
    return " ".join(str(space).split())
