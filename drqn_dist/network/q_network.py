"""The Q network: torso → (last action and reward) → core → head."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drqn_dist.config import NetworkConfig
from drqn_dist.errors import EnvError
from drqn_dist.interfaces import EnvSpec
from drqn_dist.network.core import Core
from drqn_dist.network.head import make_head
from drqn_dist.network.torso import ConvTorso, MlpTorso, make_torso


class NetworkInput(NamedTuple):
    """What the network sees: [B, T, ...] to unroll, [B, ...] to step."""

    observations: Tensor
    """uint8 or float32 [B, T, *stacked_shape]"""
    last_actions: Tensor
    """int64 [B, T]; -1 at an episode's start, which becomes an all-zero one-hot."""
    last_rewards: Tensor
    """float32 [B, T]; they enter clipped to [-1, 1], so that the scale of scores does not matter."""


class QNetwork(nn.Module):
    """Q values of every action, with memory, in parts: fold and prepare pictures, features, recur.

    Unrolling T steps in one call equals T calls of one step (≤ 1e-5 in fp32).
    """

    def __init__(self, config: NetworkConfig, spec: EnvSpec, stack_frames: int) -> None:
        """
        Raises:
            EnvError: the torso, or centring, does not fit the observations.
        """
        super().__init__()
        shape = spec.observation_shape
        self.num_actions = spec.num_actions
        self.uses_last_action_and_reward = config.last_action_and_reward
        # The article's core is also its head, and heads stay in fp32.
        self.precision = "fp32" if config.head == "gru_q" else config.precision
        self.torso = make_torso(config, shape, stack_frames)
        if config.center_pixels and not isinstance(self.torso, ConvTorso):
            raise EnvError(
                "network.center_pixels needs images and a convolutional torso, but observations of shape "
                f"{list(shape)} go to an MLP here; set it to false"
            )
        if config.standardize_vectors and (not isinstance(self.torso, MlpTorso) or spec.observation_dtype == "uint8"):
            raise EnvError(
                f"network.standardize_vectors is for vectors, but observations are {spec.observation_dtype} "
                f"{list(shape)}; set it to false"
            )
        extra = spec.num_actions + 1 if config.last_action_and_reward else 0
        units = spec.num_actions if config.head == "gru_q" else config.core_units
        self.core = Core(config.core, config.torso_units + extra, units, config.core_norm)
        self.head = make_head(config.head, self.core.units, config.head_units, spec.num_actions)

    def initial_state(self, batch: int) -> Tensor:
        """Zero state [S, B, H]."""
        return self.core.initial_state(batch)

    def prepare(self, folded: Tensor) -> Tensor:
        """Folded frames [..., *folded_shape] → numbers of the compute type, centred; the same for online and target
        network."""
        return self.torso.prepare(folded, self.compute_type(folded.device))

    def features(self, inputs: NetworkInput) -> Tensor:
        """What the core reads, float [B, T, F], from prepared frames: observations [B, T, *folded_shape] with the
        frames of a stack side by side along the last axis, in any order in memory."""
        batch, steps = inputs.last_actions.shape
        with self.autocast(inputs.observations.device):
            # Where time lies outermost in memory, rows are made in that order: nothing is copied.
            frames = inputs.observations.transpose(0, 1)
            made = self.torso.features(frames.reshape(steps * batch, *frames.shape[2:]))
            features = made.view(steps, batch, -1).transpose(0, 1)
        return self.with_last(inputs._replace(observations=features))

    def with_last(self, inputs: NetworkInput) -> Tensor:
        """What the torso made, [..., F] in place of observations, with what else the core reads."""
        features = inputs.observations
        if not self.uses_last_action_and_reward:
            return features
        # One class more than there are actions: -1 becomes class 0, which is then cut off.
        one_hot = F.one_hot(inputs.last_actions + 1, self.num_actions + 1)[..., 1:]
        reward = inputs.last_rewards.clamp(-1.0, 1.0).unsqueeze(-1)
        return torch.cat([features, one_hot.to(features.dtype), reward.to(features.dtype)], dim=-1)

    def recur(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, T, F] → Q values float32 [B, T, A], state [S, B, H]."""
        with self.autocast(features.device):
            outputs, state = self.core(features, state)
        with torch.autocast(features.device.type, enabled=False):  # also where a caller's context is around it
            return self.head(outputs.float()), state

    def burn_in(self, features: Tensor, skipped: Tensor, stride: int, state: Tensor) -> Tensor:
        """State after burn-in; see `Core.burn_in`."""
        with self.autocast(features.device):
            return self.core.burn_in(features, skipped, stride, state)

    def compute_type(self, device: torch.device) -> torch.dtype:
        """Of torso and core: bfloat16 where that is wanted and the hardware has it, else float32."""
        return torch.bfloat16 if use_bf16(self.precision, device.type) else torch.float32

    def autocast(self, device: torch.device) -> torch.autocast:
        """Torso and core run in this context. Whoever makes several calls opens it around them: a weight is then cast
        once. Its first use in there must not be under `no_grad`, or the copy that is kept has no gradient."""
        return torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(self.precision, device.type))

    def center_pixels(self, mean: Tensor) -> None:
        """Sets the torso's per-pixel mean of a folded frame, float32 [*folded_shape] in 0..255; part of the weights.

        Raises:
            ValueError: the torso has no pixels.
        """
        if not isinstance(self.torso, ConvTorso):
            raise ValueError("only a convolutional torso can be centred")
        self.torso.first.center(mean)

    def standardize(self, mean: Tensor, deviation: Tensor) -> None:
        """Sets mean and deviation of each number of an observation, float32 [D] each; part of the weights.

        Raises:
            ValueError: the torso does not standardize.
        """
        if not isinstance(self.torso, MlpTorso) or not self.torso.standardizes:
            raise ValueError("only an MLP torso with network.standardize_vectors can be standardized")
        self.torso.standardize(mean, deviation)

    def to_vector(self) -> npt.NDArray[np.float32]:
        """All parameters and buffers as one float32 [P] array, a copy."""
        return self.flat().cpu().numpy()

    def flat(self) -> Tensor:
        """The same on the network's device."""
        return torch.cat([t.detach().reshape(-1) for t in self._tensors()])

    def load_vector(self, vector: npt.NDArray[np.float32]) -> None:
        """The inverse of `to_vector`; copies, so the array may live in shared memory and be dropped.

        Raises:
            ValueError: the array belongs to another network.
        """
        tensors = self._tensors()
        sizes = [t.numel() for t in tensors]
        if vector.shape != (sum(sizes),):
            raise ValueError(f"weights of shape {vector.shape} do not fit a network of {sum(sizes):,} numbers")
        with torch.no_grad():
            for tensor, piece in zip(tensors, torch.split(torch.tensor(vector), sizes), strict=True):
                tensor.copy_(piece.view(tensor.shape))

    def _tensors(self) -> list[Tensor]:
        return [*self.parameters(), *self.buffers()]


@cache
def _cpu_has_bf16() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def use_bf16(precision: str, device: str, gpu_supports: Callable[..., bool] = torch.cuda.is_bf16_supported) -> bool:
    """Whether torso and core run in bfloat16. Hardware without bf16 instructions would emulate it, slowly."""
    if precision != "auto":
        return precision == "bf16"
    return gpu_supports(including_emulation=False) if device == "cuda" else _cpu_has_bf16()
