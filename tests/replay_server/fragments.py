"""Episodes of numbered steps, cut into fragments, for the replay's tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from drqn_dist.codec import encode
from drqn_dist.config import WindowShape
from drqn_dist.fragment import Fragment


def make_fragment(
    num_steps: int = 4, windows: int = 1, observation_shape: tuple[int, ...] = (1, 3, 3), **changes: object
) -> Fragment:
    """A small valid fragment."""
    steps = np.arange(num_steps)
    fields: dict[str, object] = {
        "observations": np.arange((num_steps + 1) * int(np.prod(observation_shape)), dtype=np.int64)
        .astype(np.uint8)
        .reshape(num_steps + 1, *observation_shape),
        "actions": (steps % 3).astype(np.int64),
        "rewards": (steps - 1.5).astype(np.float32),
        "terminated": False,
        "truncated": False,
        "first_step": 0,
        "actor_id": 0,
        "env_id": 0,
        "episode_id": 0,
        "sequence_no": 0,
        "weight_version": 0,
        "priorities": np.ones(windows, np.float32),
    }
    return Fragment(**(fields | changes))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Piece:
    """An encoded fragment and what a test needs to know of it."""

    payload: bytes
    episode: tuple[int, int, int]
    first_step: int
    num_steps: int
    ends_episode: bool
    priorities: tuple[float, ...]


def cut_episode(
    shape: WindowShape,
    num_steps: int,
    rng: np.random.Generator,
    episode: tuple[int, int, int] = (0, 0, 0),
    sequence_no: int = 0,
    complete: bool = True,
) -> list[Piece]:
    """Cuts an episode of (actor, env, episode) into encoded fragments; an incomplete one goes on after its last."""
    pieces = []
    for index, first_step in enumerate(range(0, num_steps, shape.fragment)):
        length = min(shape.fragment, num_steps - first_step)
        ends = complete and first_step + length == num_steps
        if length < shape.fragment and not ends:
            break
        priorities = rng.random(-(-length // shape.stride)).astype(np.float32)
        fragment = make_fragment(
            length,
            observation_shape=(1,),
            terminated=ends,
            first_step=first_step,
            actor_id=episode[0],
            env_id=episode[1],
            episode_id=episode[2],
            sequence_no=sequence_no + index,
            priorities=priorities,
        )
        pieces.append(Piece(encode(fragment), episode, first_step, length, ends, tuple(float(p) for p in priorities)))
    return pieces


def random_shape(rng: np.random.Generator) -> WindowShape:
    """Small measures in every relation to each other that a configuration allows."""
    unroll = int(rng.integers(1, 9))
    stride = int(rng.integers(1, unroll + 1))
    return WindowShape(
        burn_in=int(rng.integers(0, 7)),
        unroll=unroll,
        n_step=int(rng.integers(1, 5)),
        stride=stride,
        fragment=stride * int(rng.integers(1, 5)),
        history=int(rng.integers(0, 4)),
    )
