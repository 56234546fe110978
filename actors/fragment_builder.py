"""Cuts the steps of one environment into fragments."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from drqn_dist.config import TrainConfig, WindowShape
from drqn_dist.fragment import Fragment, Observations
from drqn_dist.interfaces import EnvSpec
from drqn_dist.qlearning.priority import mixed_priority
from drqn_dist.qlearning.rescale import value_transform
from drqn_dist.qlearning.returns import n_step_targets

INCARNATION_STRIDE = 2**32
"""Sequence numbers of a restarted actor begin above all those of the actor it replaces."""


class FragmentBuilder:
    """Fragments of one environment row.

    ::

        observe(o_0) add(a_0, r_0)  observe(o_1) add(a_1, r_1)  ...  observe(o_L) → Fragment of L steps

    A fragment is complete when the observation after its last step is seen, because the value of that observation
    belongs to the priorities; at an episode's end it is the true final observation.
    """

    def __init__(self, config: TrainConfig, spec: EnvSpec, actor_id: int, env_id: int, incarnation: int = 0) -> None:
        self._shape: WindowShape = config.window
        self._learner = config.learner
        self._eta = config.replay.priority_eta
        self._actor_id, self._env_id = actor_id, env_id
        self._sequence_no = incarnation * INCARNATION_STRIDE
        self._episode_id = incarnation * INCARNATION_STRIDE - 1
        steps = self._shape.fragment
        self._observations = np.zeros((steps + 1, *spec.observation_shape), spec.observation_dtype)
        self._actions = np.zeros(steps, np.int64)
        self._rewards = np.zeros(steps, np.float32)
        self._q_taken = np.zeros(steps, np.float32)
        self._q_greedy = np.zeros(steps + 1, np.float32)
        self._states: dict[int, npt.NDArray[np.float32]] = {}
        self._length = 0
        self._first_step = 0
        self._terminated = self._truncated = False

    def observe(
        self,
        observation: Observations,
        q_values: npt.NDArray[np.float32],
        state: npt.NDArray[np.float32],
        begins: bool,
        weight_version: int,
    ) -> Fragment | None:
        """Takes the observation before the next step; answers the fragment that it completes, if any.

        Args:
            observation: [*observation_shape].
            q_values: float32 [A] of this observation.
            state: float32 [S, H] before it.
            begins: it is an episode's first observation.
            weight_version: of the policy that gave `q_values` and takes the next step.
        """
        fragment = None
        self._observations[self._length] = observation
        self._q_greedy[self._length] = q_values.max()
        ended = self._terminated or self._truncated
        if ended or self._length == self._shape.fragment:
            fragment = self._finish()
            self._first_step += self._length
            self._restart(observation, q_values)
        if begins:
            self._episode_id += 1
            self._first_step = 0
            self._restart(observation, q_values)
        if self._learner.stored_state and state.size and self._shape.needs_state_at(self._first_step + self._length):
            self._states[self._length] = state.copy()
        self._q_row, self._weight_version = q_values, weight_version
        return fragment

    def add(self, action: int, reward: float, terminated: bool, truncated: bool) -> None:
        """Takes the step that followed the last observation."""
        self._actions[self._length] = action
        self._rewards[self._length] = reward
        self._q_taken[self._length] = self._q_row[action]
        self._terminated, self._truncated = terminated, truncated
        self._length += 1

    def _restart(self, observation: Observations, q_values: npt.NDArray[np.float32]) -> None:
        self._length = 0
        self._terminated = self._truncated = False
        self._states = {}
        self._observations[0] = observation
        self._q_greedy[0] = q_values.max()

    def _finish(self) -> Fragment:
        length = self._length
        fragment = Fragment(
            observations=self._observations[: length + 1].copy(),
            actions=self._actions[:length].copy(),
            rewards=self._rewards[:length].copy(),
            terminated=self._terminated,
            truncated=self._truncated,
            first_step=self._first_step,
            actor_id=self._actor_id,
            env_id=self._env_id,
            episode_id=self._episode_id,
            sequence_no=self._sequence_no,
            weight_version=self._weight_version,
            priorities=self._priorities(),
            states={step: state for step, state in self._states.items() if step < length},
        )
        self._sequence_no += 1
        return fragment

    def _priorities(self) -> npt.NDArray[np.float32]:
        """Initial priorities of the windows that begin in this fragment, from the actor's own Q values.

        The steps after the fragment are not known yet: its last errors use as many steps as there are and bootstrap
        from its last observation, and a window that reaches further is judged by its part in this fragment.

        Returns:
            float32 [ceil(L / stride)]
        """
        length, shape, learner = self._length, self._shape, self._learner
        h = value_transform(learner.rescale_values)
        rewards = torch.zeros(1, length + shape.n_step)
        rewards[0, :length] = torch.from_numpy(self._rewards[:length])
        values = torch.zeros(1, length + shape.n_step)
        values[0, : length + 1] = torch.from_numpy(self._q_greedy[: length + 1])
        targets = n_step_targets(
            rewards.sign() if learner.clip_rewards else rewards,
            h.invert(values),
            steps_left=torch.arange(length, 0, -1)[None],
            terminated=torch.tensor([self._terminated]),
            n=shape.n_step,
            gamma=learner.gamma,
        )
        td = h.apply(targets[0]) - torch.from_numpy(self._q_taken[:length])
        windows = -(-length // shape.stride)
        padded = torch.zeros(2, (windows - 1) * shape.stride + shape.unroll)
        padded[0, :length], padded[1, :length] = td, 1.0
        errors, mask = padded.unfold(1, shape.unroll, shape.stride)
        return mixed_priority(errors, mask, self._eta).numpy()
