"""The slow obvious way to cut fragments: one environment at a time, its episode as plain lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from actors.fragment_buffer import INCARNATION_STRIDE
from drqn_dist.config import TrainConfig
from drqn_dist.fragment import Fragment
from tests.oracles import as_learnt, h, h_inverse, n_step_return


class NaiveBuilder:
    """Fragments of one environment row."""

    def __init__(self, config: TrainConfig, actor_id: int, env_id: int, incarnation: int) -> None:
        self.config = config
        self.actor_id, self.env_id = actor_id, env_id
        self.sequence_no = incarnation * INCARNATION_STRIDE
        self.episode_id = incarnation * INCARNATION_STRIDE - 1
        self._forget()

    def _forget(self) -> None:
        self.observations: list[npt.NDArray[Any]] = []
        self.q_values: list[list[float]] = []
        self.states: list[npt.NDArray[np.float32]] = []
        self.versions: list[int] = []
        self.actions: list[int] = []
        self.rewards: list[float] = []
        self.sent = 0
        self.terminated = self.truncated = False

    def observe(
        self,
        observation: npt.NDArray[Any],
        q_values: npt.NDArray[np.float32],
        state: npt.NDArray[np.float32],
        begins: bool,
        version: int,
    ) -> list[Fragment]:
        shape, seen = self.config.window, (observation.copy(), q_values.tolist(), state.copy(), version)
        self._append(*seen)
        fragments = []
        steps, ended = len(self.actions), self.terminated or self.truncated
        while self.sent < steps and (ended or steps == self.sent + shape.fragment + shape.unroll - shape.stride):
            stop = min(self.sent + shape.fragment, steps)
            fragments.append(self._fragment(self.sent, stop))
            self.sent = stop
        if ended or begins:
            self._forget()
            self._append(*seen)
            self.episode_id += begins
        return fragments

    def _append(self, observation: Any, q_values: list[float], state: Any, version: int) -> None:
        self.observations.append(observation)
        self.q_values.append(q_values)
        self.states.append(state)
        self.versions.append(version)

    def add(self, action: int, reward: float, terminated: bool, truncated: bool) -> None:
        self.actions.append(action)
        self.rewards.append(reward)
        self.terminated, self.truncated = terminated, truncated

    def _fragment(self, first: int, stop: int) -> Fragment:
        last, shape, learner = stop == len(self.actions), self.config.window, self.config.learner
        kept = [k for k in range(first, stop) if learner.stored_state and shape.needs_state_at(k)]
        self.sequence_no += 1
        return Fragment(
            observations=np.stack(self.observations[first : stop + 1]),
            actions=np.array(self.actions[first:stop]),
            rewards=np.array(self.rewards[first:stop], np.float32),
            terminated=last and self.terminated,
            truncated=last and self.truncated,
            first_step=first,
            actor_id=self.actor_id,
            env_id=self.env_id,
            episode_id=self.episode_id,
            sequence_no=self.sequence_no - 1,
            weight_version=self.versions[stop - 1],
            priorities=np.array([self._priority(k) for k in range(first, stop, shape.stride)], np.float32),
            states={k - first: self.states[k] for k in kept if self.states[k].size},
        )

    def _priority(self, start: int) -> float:
        learner, eta = self.config.learner, self.config.replay.priority_eta
        forward, inverse = (h, h_inverse) if learner.rescale_values else (float, float)
        rewards = [as_learnt(r, learner) for r in self.rewards]
        values = {step: inverse(max(row)) for step, row in enumerate(self.q_values)}
        errors = []
        for step in range(start, min(start + learner.unroll_steps, len(rewards))):
            y = forward(n_step_return(rewards, values, step, learner.n_step, learner.gamma, self.terminated))
            errors.append(abs(y - self.q_values[step][self.actions[step]]))
        return eta * max(errors) + (1 - eta) * sum(errors) / len(errors) + 1e-3
