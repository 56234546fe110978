"""The network as actors run it: kernels folded and weights cast once, when they arrive, not at every step."""

from copy import deepcopy

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from drqn_dist.network.q_network import NetworkInput, QNetwork
from drqn_dist.network.torso import ConvTorso


class ActingNetwork:
    """Steps a `QNetwork` without gradients, on the CPU.

    Torso and core are copies in the compute type, so nothing is cast in between; the head stays in float32.
    """

    def __init__(self, network: QNetwork) -> None:
        self.network = network
        self._type = network.compute_type(torch.device("cpu"))
        # In float32 there is nothing to copy.
        cast = self._type != torch.float32
        self._torso = deepcopy(network.torso).to(self._type) if cast else network.torso
        self._core = deepcopy(network.core).to(self._type) if cast else network.core
        self._refresh()

    def load_vector(self, vector: npt.NDArray[np.float32]) -> None:
        """Takes weights over; see `QNetwork.load_vector`.

        Raises:
            ValueError: the array belongs to another network.
        """
        self.network.load_vector(vector)
        self._refresh()

    def fold(self, frames: Tensor) -> Tensor:
        """Raw frames [N, ...] → [N, *folded_shape]."""
        return self._torso.fold(frames)

    @torch.no_grad()
    def step(self, folded: Tensor, last_actions: Tensor, last_rewards: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step of N environments.

        Args:
            folded: [N, *folded_shape], the frames of a stack side by side along the last axis.
            last_actions: int64 [N], -1 at an episode's start.
            last_rewards: float32 [N].
            state: float32 [S, N, H].

        Returns:
            Q values float32 [N, A] and the state float32 [S, N, H].
        """
        # Prepared by the torso that is not cast: mean and scale keep their precision.
        features = self._torso.features(self.network.torso.prepare(folded, self._type))
        inputs = NetworkInput(features, last_actions, last_rewards)
        outputs, state = self._core(self.network.with_last(inputs).unsqueeze(1), state)
        q_values: Tensor = self.network.head(outputs[:, 0].float())
        return q_values, state

    @torch.no_grad()
    def _refresh(self) -> None:
        for mine, given in ((self._torso, self.network.torso), (self._core, self.network.core)):
            if mine is not given:
                for tensor, other in zip(mine.state_dict().values(), given.state_dict().values(), strict=True):
                    tensor.copy_(other)
        if isinstance(self._torso, ConvTorso) and isinstance(self.network.torso, ConvTorso):
            self._torso.first.frozen_kernel = None
            self._torso.first.frozen_kernel = self.network.torso.first.kernel().to(self._type)
