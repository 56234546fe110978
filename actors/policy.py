"""The acting side of the network: one batched forward for all environments, a hidden state for each of them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from drqn_dist.fragment import Observations
from drqn_dist.interfaces import EnvSpec
from drqn_dist.network.acting import ActingNetwork
from drqn_dist.network.q_network import QNetwork
from drqn_dist.state import State


@dataclass(frozen=True)
class Decision:
    """What the policy answered for N observations."""

    actions: npt.NDArray[np.int64]
    """int64 [N]"""
    q_values: npt.NDArray[np.float32]
    """float32 [N, A]"""
    states: npt.NDArray[np.float32]
    """float32 [S, N, H], the recurrent state before this step."""


class RecurrentPolicy:
    """ε-greedy policy over N environments; keeps stacks, last actions and hidden states. Used from one thread."""

    def __init__(
        self, network: QNetwork, spec: EnvSpec, stack_frames: int, num_envs: int, rng: np.random.Generator
    ) -> None:
        self.network = ActingNetwork(network)
        """Takes other weights at any time; memories stay."""
        self._rng = rng
        self._stack_frames = stack_frames
        blank = torch.zeros(num_envs, *spec.observation_shape, dtype=getattr(torch, spec.observation_dtype))
        self._stack = torch.cat([self.network.fold(blank)] * stack_frames, -1)
        self._last_actions = np.full(num_envs, -1, np.int64)
        self._state = network.initial_state(num_envs)

    def act(
        self,
        observations: Observations,
        begins: npt.NDArray[np.bool_],
        last_rewards: npt.NDArray[np.float32],
        epsilons: npt.NDArray[np.float64],
    ) -> Decision:
        """Chooses one action per environment.

        Args:
            observations: uint8 or float32 [N, *observation_shape].
            begins: bool [N], rows whose observation is the first of an episode: memory and stack start anew.
            last_rewards: float32 [N], ignored where an episode begins.
            epsilons: float64 [N], probability of a uniformly random action.
        """
        fresh = np.flatnonzero(begins)
        self._push(observations, fresh)
        if fresh.size:
            self._last_actions[fresh] = -1
            self._state[:, torch.from_numpy(fresh)] = 0.0
        states = self._state.numpy()  # no copy: below the network answers with a new tensor
        q_tensor, self._state = self.network.step(
            self._stack,
            torch.from_numpy(self._last_actions),
            torch.from_numpy(np.where(begins, np.float32(0), last_rewards)),
            self._state,
        )
        q_values = q_tensor.numpy()
        actions = q_values.argmax(1)
        explores = self._rng.random(len(actions)) < epsilons
        actions[explores] = self._rng.integers(0, q_values.shape[1], int(explores.sum()))
        self._last_actions = actions.copy()
        return Decision(actions, q_values, states)

    def get_state(self) -> State:
        """Memories, and the weights that act, which may be older than the newest ones."""
        arrays = {
            "weights": self.network.network.to_vector(),
            "stack": self._stack.numpy().copy(),
            "last_actions": self._last_actions.copy(),
            "hidden": self._state.numpy().copy(),
        }
        return State(arrays, {"rng": self._rng.bit_generator.state})

    def set_state(self, state: State) -> None:
        """Goes on as the policy whose state that is.

        Raises:
            CheckpointError: it has another network, or another number of environments.
        """
        weights = np.empty_like(self.network.network.to_vector())
        state.fill("weights", weights)
        # New ones: the present ones may be an environment's array, or the network's last answer.
        self._stack, self._state = torch.empty_like(self._stack), torch.empty_like(self._state)
        state.fill("stack", self._stack.numpy())
        state.fill("hidden", self._state.numpy())
        state.fill("last_actions", self._last_actions)
        self.network.load_vector(weights)
        self._rng.bit_generator.state = state.values["rng"]

    def _push(self, observations: Observations, fresh: npt.NDArray[np.int64]) -> None:
        """Each frame is folded once; the stack lies side by side along the last axis, the newest frame last."""
        frames = self.network.fold(torch.from_numpy(observations))
        if self._stack_frames == 1:
            self._stack = frames
            return
        self._stack = torch.cat([self._stack[..., frames.shape[-1] :], frames], -1)
        if fresh.size:
            # Before its first frame an episode shows that frame.
            rows = torch.from_numpy(fresh)
            self._stack[rows] = torch.cat([frames[rows]] * self._stack_frames, -1)
