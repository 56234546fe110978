"""Where the roles meet.

The roles (actors, learner, replay) never import one another; each is handed objects of these Protocols, and
whoever starts them (`drqn_dist.training`, `drqn_dist.distributed`) decides whether a call stays in the process or
crosses Ray.

    actor:    while True: act, step; sink.push(encoded fragments); sometimes weights.latest(known version)
    learner:  while True: draws = source.sample(batches, inbox); train; priorities.update(ids, values);
              sometimes publish
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from drqn_dist.state import State


@dataclass(frozen=True)
class EnvSpec:
    """What the roles know of an environment."""

    observation_shape: tuple[int, ...]
    """One unstacked observation: [C, H, W] for images, [D] for vectors."""
    observation_dtype: str
    """uint8 (images, 0..255) or float32 (vectors)."""
    num_actions: int
    frames_per_step: int
    """Emulator frames per agent step (1 outside Atari)."""

    @property
    def is_image(self) -> bool:
        return len(self.observation_shape) == 3


@dataclass(frozen=True)
class StepBatch:
    """What one step of a batch of N environments gave.

    An episode ends in row i when `terminated[i]` or `truncated[i]`; `observations[i]` is then its true final
    observation. If `reset_pending[i]` too, the NEXT step of that row resets it: the action is ignored, the reward
    is 0 and the observation is the first one of a new game; the caller drops that row as a transition. If not
    (a lost life that ends the learning episode), play goes on and the final observation also begins the next episode.
    """

    observations: npt.NDArray[np.uint8] | npt.NDArray[np.float32]
    """[N, *observation_shape]; valid until the next step."""
    rewards: npt.NDArray[np.float32]
    """float32 [N], unclipped."""
    terminated: npt.NDArray[np.bool_]
    """bool [N]"""
    truncated: npt.NDArray[np.bool_]
    """bool [N]"""
    reset_pending: npt.NDArray[np.bool_]
    """bool [N]; implies terminated or truncated."""


class BatchEnv(Protocol):
    """N environments stepped together, with next-step autoreset."""

    spec: EnvSpec
    num_envs: int

    def reset(self, seed: int) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]:
        """Starts a new game in every row; float32 or uint8 [N, *observation_shape]."""
        ...

    def step(self, actions: npt.NDArray[np.int64]) -> StepBatch:
        """Takes int64 [N] actions."""
        ...

    def get_state(self) -> State:
        """Where all rows stand, between two steps, after `reset`.

        An episode is its seed and its actions, for environments in general cannot be copied. So this costs little, and
        `set_state` plays every row's episode again.
        """
        ...

    def set_state(self, state: State) -> None:
        """Goes on, bit for bit, as the batch whose state that is, of the same settings and size; after `reset`.

        Raises:
            EnvNotRestoredError: rows whose last observation, or end, is another one than it was.
            CheckpointError: the state belongs to other settings.
        """
        ...

    def close(self) -> None: ...


SHARD_STRIDE = 2**48
"""Serial numbers and window ids of a shard begin so far above those of the shard before it."""


@dataclass(frozen=True)
class Held:
    """Which fragments of a replay's log a learner keeps and will still keep when the answer has come."""

    log: int = 0
    """Whose serial numbers these are; a replay that was started again has another log."""
    first: int = 0
    end: int = 0
    """Serial numbers first … end - 1."""


@dataclass(frozen=True)
class Fresh:
    """The next fragments of a replay's log that the learner does not have yet."""

    log: int
    first: int
    """Serial number of the first one; the others follow it."""
    fragments: tuple[bytes, ...]
    """Encoded."""


@dataclass(frozen=True)
class WindowDraws:
    """Drawn windows as references, for one or several batches in turn."""

    ids: npt.NDArray[np.int64]
    """int64 [N], unique for ever; priorities go back by id."""
    probabilities: npt.NDArray[np.float64]
    """float64 [N], with which each window was drawn."""
    starts: npt.NDArray[np.int64]
    """int64 [N], episode step at which the unroll begins."""
    chains: npt.NDArray[np.int64]
    """int64 [N, C], serial numbers of the fragments that hold the window, in episode order without gaps; then -1."""
    population: int
    """Windows that could have been drawn."""
    inserted_steps: int
    """Agent steps the replay had received so far, over the whole run."""
    unheld: npt.NDArray[np.int64]
    """int64 [E], ascending: serial numbers of fragments in `chains` that the learner does not keep."""
    unheld_fragments: tuple[bytes, ...]
    """They themselves, encoded."""


@dataclass(frozen=True)
class WeightSnapshot:
    """The network's parameters at one version."""

    version: int
    """Learner updates done when the snapshot was taken."""
    vector: npt.NDArray[np.float32]
    """float32 [P], all parameters and buffers flattened in the network's own order."""


class FragmentSink(Protocol):
    """Takes encoded fragments, in the order in which they were completed; may block when too many are in flight.
    A retry of the same fragment is harmless."""

    def push(self, payloads: Sequence[bytes]) -> None: ...


class FragmentInbox(Protocol):
    """Where a learner takes in the fragments of each shard of the replay."""

    def held(self, shard: int) -> Held:
        """What it keeps of that shard; at least `fresh_limit` more fragments fit in without driving that out."""
        ...

    @property
    def fresh_limit(self) -> int:
        """The most fragments that one answer may bring."""
        ...

    def receive(self, fresh: Fresh, shard: int) -> None:
        """Takes them in, in order."""
        ...


class WindowSource(Protocol):
    """Gives windows by reference, and the fragments behind them once each."""

    def sample(self, batches: int, inbox: FragmentInbox) -> WindowDraws | None:
        """The windows of so many batches, or None if the rate limiter did not allow them within a moment; either way
        `inbox` has received what is new."""
        ...


class PrioritySink(Protocol):
    """Takes new priorities; ids of evicted windows are counted and ignored."""

    def update_priorities(self, ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]) -> None: ...


class WeightSource(Protocol):
    """Gives newer weights than `known_version`, or None; never blocks for long."""

    @property
    def pending(self) -> bool:
        """Whether `latest` has sent a request that is not answered yet: then it is worth another look at each step."""
        ...

    def latest(self, known_version: int) -> WeightSnapshot | None: ...
