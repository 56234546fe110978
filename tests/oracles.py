"""The slow obvious way: episodes as plain lists, networks stepped once per step, targets in Python floats."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drqn_dist.config import LearnerConfig, TrainConfig
from drqn_dist.network.q_network import NetworkInput, QNetwork


@dataclass(eq=False)
class PlainEpisode:
    """All of an episode: E + 1 observations, E actions and rewards; without an end while it goes on."""

    observations: list[npt.NDArray[Any]]
    actions: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: bool = False
    truncated: bool = False

    @property
    def num_steps(self) -> int:
        return len(self.actions)

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated


def stack_at(episode: PlainEpisode, step: int, stack_frames: int) -> npt.NDArray[Any]:
    """The last `stack_frames` observations, oldest first; before its start an episode shows its first one."""
    return np.concatenate([episode.observations[max(0, step - back)] for back in reversed(range(stack_frames))])


def input_at(episode: PlainEpisode, step: int, stack_frames: int) -> NetworkInput:
    """What the network sees at one step, as a batch of one."""
    return NetworkInput(
        torch.from_numpy(stack_at(episode, step, stack_frames))[None],
        torch.tensor([episode.actions[step - 1] if step else -1]),
        torch.tensor([episode.rewards[step - 1] if step else 0.0]),
    )


def unroll(network: QNetwork, inputs: NetworkInput, state: Tensor) -> tuple[Tensor, Tensor]:
    """Raw inputs [B, T, ...] → Q values float32 [B, T, A], state [S, B, H]."""
    batch, steps = inputs.last_actions.shape
    folded = network.torso.fold(inputs.observations.flatten(0, 1))
    prepared = network.prepare(folded).view(batch, steps, *folded.shape[1:])
    return network.recur(network.features(inputs._replace(observations=prepared)), state)


def step_once(network: QNetwork, inputs: NetworkInput, state: Tensor) -> tuple[Tensor, Tensor]:
    """One step: raw inputs [B, ...] → Q values float32 [B, A], state [S, B, H]."""
    q_values, state = unroll(network, NetworkInput(*(x.unsqueeze(1) for x in inputs)), state)
    return q_values[:, 0], state


Steps = tuple[dict[int, list[float]], dict[int, Tensor]]


def step_through(network: QNetwork, episode: PlainEpisode, steps: range, state: Tensor, stack_frames: int) -> Steps:
    """Q values of each of these steps and the state before it, one call at a time.

    The final observation counts as a step here: it has Q values too.
    """
    q_values, states = {}, {}
    with torch.no_grad():
        for step in steps:
            states[step] = state
            q, state = step_once(network, input_at(episode, step, stack_frames), state)
            q_values[step] = q[0].tolist()
    return q_values, states


@functools.lru_cache(maxsize=64)
def step_through_all(network: QNetwork, episode: PlainEpisode, stack_frames: int) -> Steps:
    """All steps of an episode from the zero state; remembered, so neither may change afterwards."""
    return step_through(network, episode, range(len(episode.observations)), network.initial_state(1), stack_frames)


def h(x: float) -> float:
    """Pohlen et al. 2018, as printed there."""
    return math.copysign(math.sqrt(abs(x) + 1) - 1, x) + 1e-3 * x


def h_inverse(y: float) -> float:
    """Pohlen et al. 2018, Proposition A.2, as printed there."""
    eps = 1e-3
    return math.copysign(((math.sqrt(1 + 4 * eps * (abs(y) + 1 + eps)) - 1) / (2 * eps)) ** 2 - 1, y)


def as_learnt(reward: float, config: LearnerConfig) -> float:
    """Scaled, then to [-1, 1] (Mnih et al. 2015) where that is asked."""
    scaled = reward * config.reward_scale
    return max(-1.0, min(1.0, scaled)) if config.clip_rewards else scaled


def n_step_return(
    rewards: Sequence[float], values: dict[int, float], step: int, n: int, gamma: float, terminated: bool
) -> float:
    """The return from `step` of an episode whose rewards are all given; `values[len(rewards)]` is the last one's."""
    total = 0.0
    for k in range(n):
        total += gamma**k * rewards[step + k]
        if step + k + 1 == len(rewards):
            return total if terminated else total + gamma ** (k + 1) * values[len(rewards)]
    return total + gamma**n * values[step + n]


def window_errors(
    config: TrainConfig, network: QNetwork, target: QNetwork, episode: PlainEpisode, start: int
) -> tuple[list[float], list[float]]:
    """Q values of the taken actions and y - q of each step that the window at `start` trains."""
    learner, stack = config.learner, config.env.stack_frames
    first = max(0, start - learner.burn_in_steps)
    seen = range(first, min(start + learner.unroll_steps + learner.n_step, len(episode.observations)))
    if learner.stored_state:
        online, states = step_through_all(network, episode, stack)
        state = states[first]
    else:
        state = network.initial_state(1)
        online, _ = step_through(network, episode, seen, state, stack)
    frozen, _ = step_through(target, episode, seen, state, stack)
    forward, inverse = (h, h_inverse) if learner.rescale_values else (float, float)
    values = {}
    for step, row in frozen.items():
        best = int(np.argmax(online[step] if learner.double_q else row))
        values[step] = inverse(row[best])
    rewards = [as_learnt(r, learner) for r in episode.rewards]
    q_taken, errors = [], []
    for step in range(start, min(start + learner.unroll_steps, episode.num_steps)):
        q = online[step][episode.actions[step]]
        y = forward(n_step_return(rewards, values, step, learner.n_step, learner.gamma, episode.terminated))
        q_taken.append(q)
        errors.append(y - q)
    return q_taken, errors


def staleness(
    config: TrainConfig, acted: QNetwork, network: QNetwork, episode: PlainEpisode, start: int
) -> tuple[float, float]:
    """ΔQ at the first and the last trained step of a window whose stored state, if it has one, `acted` made."""
    stack, first = config.env.stack_frames, max(0, start - config.learner.burn_in_steps)
    end = min(start + config.learner.unroll_steps, episode.num_steps)
    true, _ = step_through_all(network, episode, stack)
    state = network.initial_state(1)
    if config.learner.stored_state:
        state = step_through_all(acted, episode, stack)[1][first]
    mine, _ = step_through(network, episode, range(first, end), state, stack)
    largest = max(abs(q) for step in range(start, end) for q in true[step])
    first_off, last_off = (math.dist(mine[step], true[step]) / largest for step in (start, end - 1))
    return first_off, last_off


def fragment_priorities(
    config: TrainConfig, network: QNetwork, episode: PlainEpisode, first: int, end: int
) -> list[float]:
    """Initial priorities of the windows that start in the fragment [first, end): by all the steps that they train, the
    last errors from the returns as far as the actor knows them then."""
    learner, eta = config.learner, config.replay.priority_eta
    forward, inverse = (h, h_inverse) if learner.rescale_values else (float, float)
    q_values, _ = step_through_all(network, episode, config.env.stack_frames)
    values = {step: inverse(max(row)) for step, row in q_values.items()}
    known = min(end + learner.unroll_steps - config.window.stride, episode.num_steps)
    rewards = [as_learnt(r, learner) for r in episode.rewards[:known]]
    terminated = episode.terminated and known == episode.num_steps
    priorities = []
    for start in range(first, end, config.window.stride):
        errors = []
        for step in range(start, min(start + learner.unroll_steps, known)):
            y = forward(n_step_return(rewards, values, step, learner.n_step, learner.gamma, terminated))
            errors.append(abs(y - q_values[step][episode.actions[step]]))
        priorities.append(eta * max(errors) + (1 - eta) * sum(errors) / len(errors) + 1e-3)
    return priorities


def folded(picture: npt.NDArray[Any], kernel: int = 8, stride: int = 4) -> npt.NDArray[Any]:
    """[C, H, W] → [h, w, C·s·s]: s×s neighbours of a channel stand behind each other."""
    channels, height, width = picture.shape
    rows, columns = ((size - kernel) // stride + kernel // stride for size in (height, width))
    out = np.zeros((rows, columns, channels * stride * stride), picture.dtype)
    for c, y, x in np.ndindex(channels, stride, stride):
        out[..., (c * stride + y) * stride + x] = picture[c, y::stride, x::stride][:rows, :columns]
    return out


def read_window(config: TrainConfig, episode: PlainEpisode, start: int) -> dict[str, npt.NDArray[Any]]:
    """One row of a `WindowTensors`, cell by cell, without state and steps_left; frames [history + total, ...] raw.

    Column 0 of all but `frames` is the burn-in's first one, `burn_in` steps before `start`, also where the episode has
    no such step.
    """
    shape, final = config.window, episode.num_steps
    first, main = start - shape.burn_in, shape.unroll + shape.n_step
    frames = [episode.observations[min(max(first + k, 0), final)] for k in range(-shape.history, shape.total)]
    seen = config.network.last_action_and_reward
    steps = range(first, first + shape.total)
    inside = [start + k < final for k in range(main)]
    return {
        "frames": np.stack(frames),
        "last_actions": np.array([episode.actions[s - 1] if seen and 0 < s <= final else -1 for s in steps]),
        "last_rewards": np.array([episode.rewards[s - 1] if seen and 0 < s <= final else 0 for s in steps], np.float32),
        "actions": np.array([episode.actions[start + k] if inside[k] else 0 for k in range(main)]),
        "rewards": np.array([episode.rewards[start + k] if inside[k] else 0 for k in range(main)], np.float32),
        "mask": np.array(inside[: shape.unroll], np.float32),
        "skipped": np.array(max(0, -first)),
    }
