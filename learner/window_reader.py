"""From drawn windows, still compressed, to dense arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from drqn_dist.codec import decode
from drqn_dist.config import TrainConfig
from drqn_dist.errors import FragmentError
from drqn_dist.fragment import Fragment, WindowBatch
from drqn_dist.interfaces import EnvSpec, WindowRef, WindowSample


@dataclass(frozen=True)
class _Chain:
    """The fragments of one window joined: steps [first, end) of an episode, observations [first, end]."""

    first: int
    observations: npt.NDArray[np.uint8] | npt.NDArray[np.float32]
    actions: npt.NDArray[np.int64]
    rewards: npt.NDArray[np.float32]
    last: Fragment

    @property
    def end(self) -> int:
        return self.first + len(self.actions)


class WindowReader:
    """Decodes samples into WindowBatches. Without state of its own, so several threads may share one."""

    def __init__(self, config: TrainConfig, spec: EnvSpec) -> None:
        self._shape = config.window
        self._stack = config.env.stack_frames
        self._max_bytes = config.replay.max_fragment_bytes
        self._spec = spec
        network = config.network
        self._slots = {"gru": 1, "lstm": 2, "none": 0}[network.core]
        self._units = 0 if network.core == "none" else network.core_units
        if network.head == "gru_q":
            self._units = spec.num_actions

    def empty(self, windows: int) -> WindowBatch:
        """A batch of the right shapes to read into; allocate a few and reuse them."""
        shape, spec = self._shape, self._spec
        main, total = shape.unroll + shape.n_step, shape.total
        channels, rest = spec.observation_shape[0] * self._stack, spec.observation_shape[1:]
        return WindowBatch(
            observations=np.empty((windows, total, channels, *rest), spec.observation_dtype),
            last_actions=np.empty((windows, total), np.int64),
            last_rewards=np.empty((windows, total), np.float32),
            actions=np.empty((windows, main), np.int64),
            rewards=np.empty((windows, main), np.float32),
            steps_left=np.empty((windows, main), np.int64),
            terminated=np.empty(windows, np.bool_),
            mask=np.empty((windows, shape.unroll), np.float32),
            burn_in_lengths=np.empty(windows, np.int64),
            state=np.empty((self._slots, windows, self._units), np.float32),
            ids=np.empty(windows, np.int64),
            probabilities=np.empty(windows, np.float64),
            population=0,
            inserted_steps=0,
            weight_versions=np.empty(windows, np.int64),
        )

    def read(self, sample: WindowSample, out: WindowBatch) -> WindowBatch:
        """Fills `out` with the sample's windows.

        Raises:
            FragmentError: a fragment is corrupt, or does not fit this run's environment or network.
        """
        fragments = [decode(payload, self._max_bytes) for payload in sample.fragments]
        for fragment in fragments:
            if (
                fragment.observations.shape[1:] != self._spec.observation_shape
                or fragment.observations.dtype != self._spec.observation_dtype
            ):
                raise FragmentError(
                    f"a fragment holds {fragment.observations.dtype} observations of shape "
                    f"{fragment.observations.shape[1:]}, but this run's environment gives "
                    f"{self._spec.observation_dtype} {self._spec.observation_shape}"
                )
            if int(fragment.actions.max()) >= self._spec.num_actions:
                raise FragmentError(
                    f"a fragment holds action {int(fragment.actions.max())}, but this run's environment has "
                    f"{self._spec.num_actions} actions"
                )
        for row, window in enumerate(sample.windows):
            self._read_row(window, fragments, row, out)
        out.ids[:], out.probabilities[:] = sample.ids, sample.probabilities
        out.population, out.inserted_steps = sample.population, sample.inserted_steps
        return out

    def _read_row(self, window: WindowRef, fragments: list[Fragment], row: int, out: WindowBatch) -> None:
        shape = self._shape
        chain = _join([fragments[span.fragment] for span in window.spans])
        start = window.unroll_start
        burn_in = shape.burn_in_of(start)
        out.state[:, row], out.weight_versions[row] = self._state(window, fragments, start - burn_in)
        out.burn_in_lengths[row] = burn_in
        stop = min(start + shape.unroll + shape.n_step, chain.end + 1)  # behind the last observation
        ends = chain.last.ends_episode
        main = slice(shape.burn_in, shape.burn_in + stop - start)
        for first, last, columns in ((start - burn_in, start, slice(0, burn_in)), (start, stop, main)):
            steps = np.arange(first, last)
            self._stack_frames(chain, steps, out.observations[row, columns])
            before = np.maximum(steps - 1 - chain.first, 0)
            fresh = steps == 0
            out.last_actions[row, columns] = np.where(fresh, -1, chain.actions[before])
            out.last_rewards[row, columns] = np.where(fresh, np.float32(0), chain.rewards[before])
        for padding in (slice(burn_in, shape.burn_in), slice(main.stop, shape.total)):
            out.observations[row, padding] = 0
            out.last_actions[row, padding] = -1
            out.last_rewards[row, padding] = 0

        width = shape.unroll + shape.n_step
        known = min(width, chain.end - start)
        out.actions[row, :known] = chain.actions[start - chain.first :][:known]
        out.rewards[row, :known] = chain.rewards[start - chain.first :][:known]
        out.actions[row, known:], out.rewards[row, known:] = 0, 0
        # Without a known end every step has at least n_step steps left.
        out.steps_left[row] = chain.end - (start + np.arange(width)) if ends else width + shape.n_step
        out.terminated[row] = chain.last.terminated
        out.mask[row] = np.arange(shape.unroll) < chain.end - start

    def _stack_frames(
        self, chain: _Chain, steps: npt.NDArray[np.int64], out: npt.NDArray[np.uint8] | npt.NDArray[np.float32]
    ) -> None:
        """Observation k of a stack is that of `stack - 1 - k` steps before; before its start an episode shows its
        first frame."""
        channels = self._spec.observation_shape[0]
        for k in range(self._stack):
            source = np.maximum(steps - (self._stack - 1 - k), 0) - chain.first
            out[:, k * channels : (k + 1) * channels] = chain.observations[source]

    def _state(self, window: WindowRef, fragments: list[Fragment], step: int) -> tuple[npt.NDArray[np.float32], int]:
        """The stored state before this episode step, zero if none was stored, and the version behind it."""
        for span in window.spans:
            fragment = fragments[span.fragment]
            if fragment.first_step <= step < fragment.first_step + fragment.num_steps:
                state = fragment.states.get(step - fragment.first_step)
                if state is None:
                    state = np.zeros((self._slots, self._units), np.float32)
                elif state.shape != (self._slots, self._units):
                    raise FragmentError(
                        f"a stored state has shape {state.shape}, but this run's core needs "
                        f"{(self._slots, self._units)}"
                    )
                return state, fragment.weight_version
        raise FragmentError(f"no fragment of the window holds its first step {step}")


def _join(fragments: list[Fragment]) -> _Chain:
    inner = [f.observations[: f.num_steps] for f in fragments[:-1]]
    return _Chain(
        first=fragments[0].first_step,
        observations=np.concatenate([*inner, fragments[-1].observations]) if inner else fragments[-1].observations,
        actions=np.concatenate([f.actions for f in fragments]),
        rewards=np.concatenate([f.rewards for f in fragments]),
        last=fragments[-1],
    )
