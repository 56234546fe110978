"""From gathered columns to what the loss reads. Shapes depend on the configuration alone."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drqn_dist.config import WindowShape
from learner.fragment_table import Windows
from learner.frame_store import Gathered

_SCALARS = 4


class WindowTensors(NamedTuple):
    """B windows on the learner's device; T = unroll, M = unroll + n_step, total = burn-in + M.

    ::

        columns       0 ................. burn_in ............................ burn_in + M
        row i         [ unused | burn-in  ][ unroll steps ... | tail | repeated last observation ]
                               ^ state[:, i] enters here: skipped[i]
    """

    frames: Tensor
    """[history + total, B, *folded_shape], unstacked, time outermost."""
    last_actions: Tensor
    """int64 [B, total], the action before each observation; -1 at an episode's start."""
    last_rewards: Tensor
    """float32 [B, total], the reward before each observation; 0 at an episode's start."""
    actions: Tensor
    """int64 [B, M]; meaningless from the episode's end on."""
    rewards: Tensor
    """float32 [B, M], unclipped, 0 from the episode's end on."""
    steps_left: Tensor
    """int64 [B, M], steps from here to the episode's end, or more than n_step."""
    terminated: Tensor
    """bool [B], that end is a termination (otherwise a truncation)."""
    mask: Tensor
    """float32 [B, T], 1 on trained steps."""
    skipped: Tensor
    """int64 [B], burn-in columns before the row's first one."""
    state: Tensor
    """float32 [S, B, H], at each row's first step."""


def pack(windows: Windows, batches: int) -> npt.NDArray[np.int64]:
    """All numbers that the device needs of K batches, int64 [K, W + 4, B], to be sent in one copy."""
    columns = [*windows.rows.T, windows.state_rows, windows.first_steps, windows.steps_left, windows.terminated]
    return np.stack(columns).reshape(len(columns), batches, -1).transpose(1, 0, 2).copy()


def rows_of(places: Tensor) -> tuple[Tensor, Tensor]:
    """Of one packed batch: rows int64 [W, B] and state rows int64 [B]."""
    return places[:-_SCALARS], places[-_SCALARS]


def read_windows(gathered: Gathered, places: Tensor, shape: WindowShape, with_last: bool) -> WindowTensors:
    """
    Args:
        places: int64 [W + 4, B], as `pack` made it for a batch.
        with_last: last actions and rewards are wanted; otherwise they are -1 and 0.
    """
    _, first_steps, steps_left, terminated = places[-_SCALARS:]
    history, burn_in, total = shape.history, shape.burn_in, shape.total
    device = places.device
    actions, rewards = gathered.actions.T, gathered.rewards.T
    if with_last:
        inside = first_steps[:, None] + torch.arange(total, device=device) > 0
        last_actions = torch.where(inside, actions[:, history - 1 : history - 1 + total], -1)
        last_rewards = torch.where(inside, rewards[:, history - 1 : history - 1 + total], 0.0)
    else:
        last_actions = torch.full_like(actions[:, history:], -1)
        last_rewards = torch.zeros_like(rewards[:, history:])
    left = steps_left[:, None] - torch.arange(shape.unroll + shape.n_step, device=device)
    return WindowTensors(
        frames=gathered.frames,
        last_actions=last_actions,
        last_rewards=last_rewards,
        actions=actions[:, history + burn_in :],
        # The last observation repeats behind the end, and with it the 0 that stands beside it.
        rewards=rewards[:, history + burn_in :],
        steps_left=left,
        terminated=terminated.bool(),
        mask=(left[:, : shape.unroll] > 0).float(),
        skipped=(-first_steps).clamp(0, burn_in),
        state=gathered.state,
    )


def stack_frames(prepared: Tensor, stack: int, shape: WindowShape) -> Tensor:
    """[history + total, B, ..., C] → [total, B, ..., stack·C], the oldest frame of a stack first."""
    first = shape.history - (stack - 1)
    if stack == 1:
        return prepared[first:]
    return torch.cat([prepared[first + k : first + k + shape.total] for k in range(stack)], -1)
