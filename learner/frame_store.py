"""The frame store: what the replay holds, decoded once, as ring tensors. Batches are gathered from it by index."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from drqn_dist.config import TrainConfig
from drqn_dist.interfaces import EnvSpec
from learner.fragment_table import Capacity

FRESH_BYTES = 32 * 1024**2
"""About as much, decoded, comes with one answer to a learner that has to catch up."""
SHORT_FRAGMENTS = 4
"""The table has room for so many times the fragments that the rows would hold were all of them full."""
DEVICE_SHARE = 0.7
"""The part of a GPU's free memory that the store may take; the rest is for the update."""
HOST_SHARE = 0.5
"""The part of the machine's available memory that it may take: the replay and the actors grow beside it."""


class Staged(NamedTuple):
    """Decoded fragments on their way into the store."""

    rows: Tensor
    """int64 [n]"""
    frames: Tensor
    """[n, *folded_shape], as the torso folds them."""
    actions: Tensor
    """int64 [n], 0 at a fragment's last observation."""
    rewards: Tensor
    """float32 [n], likewise."""
    state_rows: Tensor
    """int64 [m]"""
    states: Tensor
    """float32 [m, S, H]"""


class Gathered(NamedTuple):
    """What B windows read, W columns each; time is outermost, so that any stretch of columns is one block."""

    frames: Tensor
    """[W, B, *folded_shape]"""
    actions: Tensor
    """int64 [W, B]"""
    rewards: Tensor
    """float32 [W, B]"""
    state: Tensor
    """float32 [S, B, H]"""


class FrameStore:
    """Observations, actions, rewards and stored states by row; which row holds what is `FragmentTable`'s to know."""

    def __init__(
        self,
        rows: int,
        states: int,
        folded_shape: tuple[int, ...],
        dtype: torch.dtype,
        state_shape: tuple[int, int],
        device: torch.device,
    ) -> None:
        """
        Args:
            rows, states: how many of each; state 0 stays zero.
            folded_shape: of one frame as the torso folds it.
            dtype: of frames: uint8 or float32.
            state_shape: [S, H].
        """
        self.device = device
        self._folded_shape = folded_shape
        self._frames = torch.empty(rows, math.prod(folded_shape), dtype=dtype, device=device)
        self._actions = torch.zeros(rows, dtype=torch.int64, device=device)
        self._rewards = torch.zeros(rows, device=device)
        self._states = torch.zeros(states, *state_shape, device=device)
        # Bytes are moved eight at a time where a frame's size allows it.
        whole = self._frames.shape[1] * self._frames.element_size() % 8 == 0
        self._words = self._frames.view(torch.int64) if whole else self._frames

    def write(self, staged: Staged) -> None:
        """Puts fragments where they belong; on a GPU the copies are only enqueued."""
        rows, frames, actions, rewards, state_rows, states = (x.to(self.device, non_blocking=True) for x in staged)
        self._words.index_copy_(0, rows, frames.flatten(1).view(self._words.dtype))
        self._actions.index_copy_(0, rows, actions)
        self._rewards.index_copy_(0, rows, rewards)
        if len(state_rows):
            self._states.index_copy_(0, state_rows, states)

    def gather(self, rows: Tensor, state_rows: Tensor) -> Gathered:
        """Reads windows: rows int64 [W, B], state_rows int64 [B]."""
        flat = rows.flatten()
        frames = self._words.index_select(0, flat).view(self._frames.dtype)
        return Gathered(
            frames.view(*rows.shape, *self._folded_shape),
            self._actions.index_select(0, flat).view(rows.shape),
            self._rewards.index_select(0, flat).view(rows.shape),
            self._states.index_select(0, state_rows).transpose(0, 1).contiguous(),
        )


@dataclass(frozen=True)
class StorePlan:
    """Where the frame store lies and how much it holds."""

    place: Literal["device", "host"]
    """device: gathered there, inside the update; host: gathered by the feeding thread, and sent to the device."""
    capacity: Capacity
    fresh_limit: int
    """Fragments that come with one answer at most."""
    bytes: int
    """Of all its tensors."""
    complete: bool
    """It holds all that the replay does; otherwise the newest part, and the rest of a window comes with its draw."""

    def __str__(self) -> str:
        what = (
            "room for all that the replay holds"
            if self.complete
            else "room for the newest part of what the replay holds; the rest is sent again when it is drawn"
        )
        where = "on the learner's device" if self.place == "device" else "in host memory, gathered there"
        return f"frame store {where}: up to {self.bytes / 1e6:,.0f} MB of decoded frames, {what}"


def plan_store(
    config: TrainConfig, spec: EnvSpec, cuda: bool, device_free_bytes: int, host_free_bytes: int
) -> StorePlan:
    """The best of three places: the device, if everything fits there; host memory; or wherever most fits, in part.

    Args:
        cuda: the learner has a GPU; otherwise its device is the host.
        device_free_bytes: free memory of that GPU.
        host_free_bytes: available memory of the machine.
    """
    shape, learner, shards = config.window, config.learner, config.replay.shards if config.mode == "ray" else 1
    full = shape.fragment + 1
    frame = math.prod(spec.observation_shape) * np.dtype(spec.observation_dtype).itemsize
    slots, units = state_shape(config, spec)
    state = 4 * slots * units if learner.stored_state else 0
    states_each = shape.fragment // shape.stride if state else 0
    # Short fragments hold more states for each step: twice as many as full ones fit, if all do.
    fragment_bytes = full * (frame + 12) + 2 * states_each * state

    batches = config.batches_per_draw
    per_call = batches * learner.batch_windows * learner.unroll_steps / config.replay.samples_per_insert
    fresh_limit = max(2 * math.ceil(per_call / shape.fragment), FRESH_BYTES // (full * frame), 1)
    fresh_limit = min(fresh_limit, math.ceil(config.replay.capacity_steps / shape.fragment))
    extra = batches * learner.batch_windows * shape.most_fragments
    spare = fresh_limit + 2  # room for an answer before what it drives out is forgotten
    wanted = math.ceil(1.05 * config.replay.capacity_steps / shards / shape.fragment) + spare

    def needed(fragments: int) -> int:
        return (shards * fragments + extra) * fragment_bytes

    budgets = {"device": DEVICE_SHARE * device_free_bytes if cuda else HOST_SHARE * host_free_bytes}
    if cuda:
        budgets["host"] = HOST_SHARE * host_free_bytes
    if learner.frame_store_bytes is not None:
        budgets = dict.fromkeys(budgets, float(learner.frame_store_bytes))
    if learner.frame_store != "auto":
        budgets = {learner.frame_store: budgets.get(learner.frame_store, budgets["device"])}
    place = next((name for name, room in budgets.items() if needed(wanted) <= room), None)
    fragments = wanted
    if place is None:
        place = max(budgets, key=lambda name: budgets[name])
        fits = int(budgets[place] / fragment_bytes - extra) // shards
        fragments = min(wanted, max(fits, 2 * spare))
    capacity = Capacity(
        rows=fragments * full,
        states=2 * fragments * states_each,
        fragments=SHORT_FRAGMENTS * fragments,
        extra_fragments=extra,
    )
    kept: Literal["device", "host"] = "device" if place == "device" else "host"
    return StorePlan(kept, capacity, fresh_limit, needed(fragments), complete=fragments == wanted)


def state_shape(config: TrainConfig, spec: EnvSpec) -> tuple[int, int]:
    """[S, H] of one environment's recurrent state."""
    network = config.network
    if network.head == "gru_q":
        return 1, spec.num_actions
    return {"gru": 1, "lstm": 2, "none": 0}[network.core], 0 if network.core == "none" else network.core_units
