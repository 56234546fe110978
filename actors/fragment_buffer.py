"""Cuts the steps of a batch of environments into fragments."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from drqn_dist.codec import decode, encode
from drqn_dist.config import TrainConfig
from drqn_dist.errors import CheckpointError
from drqn_dist.fragment import Fragment, Observations
from drqn_dist.interfaces import EnvSpec, StepBatch
from drqn_dist.qlearning.priority import mixed_priority
from drqn_dist.qlearning.rescale import value_transform
from drqn_dist.qlearning.returns import learnt_rewards, n_step_targets
from drqn_dist.state import State, joined, split, together

INCARNATION_STRIDE = 2**32
"""Sequence numbers of a restarted actor begin above all those of the actor it replaces."""

_ROWS = (
    *("observations", "q_greedy", "actions", "rewards", "q_taken", "versions"),
    *("length", "first_step", "terminated", "truncated", "sequence_no", "episode_id"),
)
"""What is kept of each row from step to step, besides recurrent states."""
_STEPS = ("lengths", "terminated", "rewards", "q_taken", "q_greedy")
"""Arguments of `FragmentBuffer._priorities`."""


class FragmentBuffer:
    """The last steps of N environments, one row each; all rows are written at once.

    ::

        observe(o_0)  add(a_0, r_0)  observe(o_1)  add(a_1, r_1)  ...  observe(o_k)  take() → fragments

        row i   o_0 ........................ o_L ................. o_{L+H}
                [ the fragment that is next )[ H steps that its last window trains besides )

    The windows of a fragment train its L steps and H = unroll - stride steps after it. A fragment is complete when
    these are known, or the episode has ended, and the observation after them was seen: its initial priorities then
    come from every step of its windows, and the value of that observation belongs to them. So a fragment leaves H
    steps after its last one: 0 where windows do not overlap, 40 with R2D2's settings.

    An episode's end completes all that is held of it. The observation that ends it is the true final one.
    """

    def __init__(self, config: TrainConfig, spec: EnvSpec, actor_id: int, num_envs: int, incarnation: int = 0) -> None:
        self._shape = shape = config.window
        self._learner = config.learner
        self._eta = config.replay.priority_eta
        self._max_fragment_bytes = config.replay.max_fragment_bytes
        self._actor_id = actor_id
        self._capacity = width = shape.fragment + shape.unroll - shape.stride
        n = num_envs
        self._rows = np.arange(n)
        self._observations: Observations = np.zeros((n, width + 1, *spec.observation_shape), spec.observation_dtype)
        self._q_greedy = np.zeros((n, width + 1), np.float32)
        self._actions = np.zeros((n, width), np.int64)
        self._rewards = np.zeros((n, width), np.float32)
        self._q_taken = np.zeros((n, width), np.float32)
        self._versions = np.zeros((n, width), np.int64)
        self._states: npt.NDArray[np.float32] | None = None
        """float32 [N, L + H, S, H]; most of its pages are never touched, and so take no memory."""
        self._stores = np.array(
            [[shape.needs_state_at(k) for k in range(first, first + width)] for first in (0, shape.fragment)]
        )
        """bool [2, L + H]: where a state is stored in an episode's first row of steps, and in a later one."""
        self._length = np.zeros(n, np.int64)
        """Steps in each row, which is also the place of the next observation."""
        self._first_step = np.zeros(n, np.int64)
        self._terminated, self._truncated = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        self._cuts: list[tuple[list[list[Fragment]], tuple[npt.NDArray[Any], ...]]] = []
        """What each step completed in R rows: the fragments of each row, without priorities, and of `_priorities` the
        arguments, R rows of each."""
        self._sequence_no = np.full(n, incarnation * INCARNATION_STRIDE)
        self._episode_id = self._sequence_no - 1

    def observe(
        self,
        observations: Observations,
        q_values: npt.NDArray[np.float32],
        states: npt.NDArray[np.float32],
        begins: npt.NDArray[np.bool_],
        weight_version: int,
    ) -> None:
        """Takes the observations before the next step, and cuts the fragments that they complete.

        Args:
            observations: [N, *observation_shape].
            q_values: float32 [N, A] of these observations; must not change until `add`.
            states: float32 [S, N, H] before them.
            begins: bool [N], rows whose observation is the first of an episode.
            weight_version: of the policy that gave `q_values` and takes the next step.
        """
        self._q_values, self._weight_version = q_values, weight_version
        self._show(self._rows, observations, q_values)
        ended = self._terminated | self._truncated
        complete = np.flatnonzero(ended | (self._length == self._capacity))
        if complete.size:
            self._cut(complete)
        fresh = np.flatnonzero(ended | begins)
        if fresh.size:
            self._length[fresh] = self._first_step[fresh] = 0
            self._terminated[fresh] = self._truncated[fresh] = False
            self._episode_id += begins
            self._show(fresh, observations[fresh], q_values[fresh])
        if self._learner.stored_state and states.size:
            self._store(states)

    def add(self, actions: npt.NDArray[np.int64], batch: StepBatch, active: npt.NDArray[np.bool_]) -> None:
        """Takes the steps that followed the last observations.

        Args:
            actions: int64 [N].
            batch: what they led to.
            active: bool [N], rows that were not just being reset; the others are dropped.
        """
        here = self._rows, self._length  # a dropped step is overwritten by the row's next one
        self._actions[here] = actions
        self._rewards[here] = batch.rewards
        self._q_taken[here] = self._q_values[self._rows, actions]
        self._versions[here] = self._weight_version
        self._terminated = batch.terminated & active
        self._truncated = batch.truncated & active
        self._length += active

    def take(self) -> list[Fragment]:
        """The fragments completed since the last call, in the order of completion.

        Their initial priorities are computed here, all at once, which costs hardly more than those of one fragment.
        """
        cuts, self._cuts = self._cuts, []
        if not cuts:
            return []
        lengths, terminated, rewards, q_taken, q_greedy = map(
            np.concatenate, zip(*(steps for _, steps in cuts), strict=True)
        )
        priorities = self._priorities(lengths, terminated, rewards, q_taken, q_greedy)
        fragments = [of_row for rows, _ in cuts for of_row in rows]
        for row, of_row in zip(priorities, fragments, strict=True):
            for fragment in of_row:
                first = (fragment.first_step - of_row[0].first_step) // self._shape.stride
                fragment.priorities[:] = row[first : first + len(fragment.priorities)]
        return [fragment for of_row in fragments for fragment in of_row]

    def get_state(self) -> State:
        """What is held between two steps, fragments that nobody took yet among it."""
        rows = {name: getattr(self, f"_{name}").copy() for name in _ROWS}
        if self._states is not None:
            rows["states"] = self._states.copy()
        cut = [of_row for fragments, _ in self._cuts for of_row in fragments]
        steps = zip(_STEPS, zip(*(steps for _, steps in self._cuts), strict=True), strict=False)
        payloads = [np.frombuffer(encode(fragment), np.uint8) for of_row in cut for fragment in of_row]
        return together(
            rows=State(rows),
            cut_rows=State({name: np.concatenate(pieces) for name, pieces in steps}),
            fragments=State(joined(payloads, "uint8"), {"per_row": [len(of_row) for of_row in cut]}),
        )

    def set_state(self, state: State) -> None:
        """Goes on as the buffer whose state that is.

        Raises:
            CheckpointError, FragmentError: it belongs to other settings.
        """
        rows, cut, fragments = state.part("rows"), state.part("cut_rows").arrays, state.part("fragments")
        for name in _ROWS:
            rows.fill(name, getattr(self, f"_{name}"))
        if not ((self._length >= 0) & (self._length <= self._capacity)).all():
            raise CheckpointError(f"the saved rows hold {self._length.tolist()} steps; 0 to {self._capacity} fit here")
        states, place = rows.arrays.get("states"), self._actions.shape
        if states is not None and (states.dtype != np.float32 or states.ndim != 4 or states.shape[:2] != place):
            raise CheckpointError(
                f"the saved 'states' are {states.dtype} {list(states.shape)}, but float32 {[*place, 'S', 'H']} fit here"
            )
        self._states = None if states is None else states.copy()
        left = [decode(payload.tobytes(), self._max_fragment_bytes) for payload in split(fragments)]
        # Decoded priorities are read-only, and these are yet to be written.
        left = [replace(fragment, priorities=fragment.priorities.copy()) for fragment in left]
        ends = np.cumsum([0, *fragments.values["per_row"]]).tolist()
        of_rows = [left[first:end] for first, end in pairwise(ends)]
        self._cuts = [(of_rows, tuple(cut[name] for name in _STEPS))] if of_rows else []

    def _show(self, rows: npt.NDArray[np.int64], observations: Observations, q_values: npt.NDArray[np.float32]) -> None:
        here = rows, self._length[rows]
        self._observations[here] = observations
        self._q_greedy[here] = q_values.max(1)

    def _store(self, states: npt.NDArray[np.float32]) -> None:
        if self._states is None:
            slots, _, units = states.shape
            self._states = np.zeros((len(self._rows), self._capacity, slots, units), np.float32)
        rows = np.flatnonzero(self._stores[(self._first_step > 0).astype(np.int64), self._length])
        self._states[rows, self._length[rows]] = states[:, rows].swapaxes(0, 1)

    def _cut(self, rows: npt.NDArray[np.int64]) -> None:
        """Cuts the fragments that are complete in these rows; the steps after them move to the row's beginning."""
        fragments, full = [], self._shape.fragment
        arrays = (self._length, self._terminated, self._rewards, self._q_taken, self._q_greedy)
        steps = tuple(values[rows] for values in arrays)
        for row in rows.tolist():
            length, ended = int(self._length[row]), self._terminated[row] or self._truncated[row]
            end = length if ended else full
            fragments.append([self._fragment(row, start, min(start + full, end)) for start in range(0, end, full)])
            if not ended:
                self._advance(row)
        self._cuts.append((fragments, steps))

    def _fragment(self, row: int, start: int, stop: int) -> Fragment:
        """Steps [start, stop) of a row, without priorities yet."""
        last = stop == self._length[row]
        states = {}
        if self._states is not None:
            stored = np.flatnonzero(self._stores[int(self._first_step[row] > 0), start:stop])
            states = {k: self._states[row, start + k].copy() for k in stored.tolist()}
        sequence_no = int(self._sequence_no[row])
        self._sequence_no[row] += 1
        return Fragment(
            observations=self._observations[row, start : stop + 1].copy(),
            actions=self._actions[row, start:stop].copy(),
            rewards=self._rewards[row, start:stop].copy(),
            terminated=bool(last and self._terminated[row]),
            truncated=bool(last and self._truncated[row]),
            first_step=int(self._first_step[row]) + start,
            actor_id=self._actor_id,
            env_id=row,
            episode_id=int(self._episode_id[row]),
            sequence_no=sequence_no,
            weight_version=int(self._versions[row, stop - 1]),
            priorities=np.zeros(-(-(stop - start) // self._shape.stride), np.float32),
            states=states,
        )

    def _advance(self, row: int) -> None:
        """Drops the first fragment of a row, whose episode goes on."""
        full = self._shape.fragment
        for values in (self._observations, self._q_greedy, self._actions, self._rewards, self._q_taken, self._versions):
            held = values[row, full:].copy()
            values[row, : len(held)] = held
        if self._states is not None and self._capacity > full:
            self._states[row, : self._capacity - full] = self._states[row, full:].copy()
        self._length[row] -= full
        self._first_step[row] += full

    def _priorities(
        self,
        lengths: npt.NDArray[np.int64],
        terminated: npt.NDArray[np.bool_],
        rewards: npt.NDArray[np.float32],
        q_taken: npt.NDArray[np.float32],
        q_greedy: npt.NDArray[np.float32],
    ) -> npt.NDArray[np.float32]:
        """Initial priorities of the windows that begin in R rows of known steps, from the actor's own Q values.

        The last errors of a row use as many steps as there are and bootstrap from its last observation.

        Args:
            lengths: int64 [R], known steps.
            terminated: bool [R], whether the episode ends for good after them.
            rewards, q_taken: float32 [R, L + H], ignored behind the known steps.
            q_greedy: float32 [R, L + H + 1].

        Returns:
            float32 [R, ceil((L + H) / stride)], meaningless behind the known steps.
        """
        shape, learner, rows, width = self._shape, self._learner, len(lengths), self._capacity
        h = value_transform(learner.rescale_values)
        steps_left = torch.from_numpy(lengths)[:, None] - torch.arange(width)
        known = steps_left > 0
        seen, values = torch.zeros(2, rows, width + shape.n_step)
        seen[:, :width] = torch.where(known, torch.from_numpy(rewards), 0.0)
        values[:, : width + 1] = torch.from_numpy(q_greedy)
        targets = n_step_targets(
            learnt_rewards(seen, learner),
            h.invert(values),
            steps_left,
            torch.from_numpy(terminated),
            n=shape.n_step,
            gamma=learner.gamma,
        )
        td = h.apply(targets) - torch.from_numpy(q_taken)
        windows = -(-width // shape.stride)
        padded = torch.zeros(2, rows, (windows - 1) * shape.stride + shape.unroll)
        padded[0, :, :width], padded[1, :, :width] = torch.where(known, td, 0.0), known
        errors, mask = padded.unfold(2, shape.unroll, shape.stride).flatten(1, 2)
        return mixed_priority(errors, mask, self._eta).view(rows, windows).numpy()
