"""Where the learner keeps each fragment: the host's half of the frame store. NumPy only, no pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from drqn_dist.config import WindowShape
from drqn_dist.errors import DrqnError, FragmentError
from drqn_dist.fragment import Fragment
from drqn_dist.interfaces import SHARD_STRIDE, Held, WindowDraws

Ints = npt.NDArray[np.int64]

FAR = 2**20
"""Steps to an episode's end that lies beyond a window's reach."""
_ON, _TERMINATED, _TRUNCATED = range(3)


class Capacity(NamedTuple):
    """How much one shard's part of the store holds, and the part for fragments that come along with a draw."""

    rows: int
    """Observations of a ring."""
    states: int
    """Stored states of a ring."""
    fragments: int
    """Entries of a ring."""
    extra_fragments: int
    """The most fragments that come along with one draw because they are not kept."""


class Placement(NamedTuple):
    """Where a fragment's observations and states go."""

    row: int
    state_row: int


class Windows(NamedTuple):
    """N windows as places in the store; W = history + burn-in + unroll + n-step tail.

    ::

        column    0 ........ history .......... + burn_in ............................ W
        step      first - history   first = start - burn_in    start
                  [ for stacks       [ burn-in                  [ unroll ... | tail    )

    Where the episode begins or ends inside the window, the columns before or behind repeat its first or last
    observation; what they hold does not count.
    """

    rows: Ints
    """int64 [N, W], where each column's observation, action and reward lie."""
    state_rows: Ints
    """int64 [N], where the state lies with which burn-in, or the unroll, begins; 0 is the zero state."""
    first_steps: Ints
    """int64 [N], episode step of the first burn-in column; negative where the episode is too young for all of them."""
    steps_left: Ints
    """int64 [N], from the unroll's start to the episode's end, `FAR` where that lies beyond the window's reach."""
    terminated: npt.NDArray[np.bool_]
    """bool [N], that end is a termination."""
    weight_versions: Ints
    """int64 [N], of the policy that acted where burn-in begins."""


@dataclass
class _Ring:
    """How full one shard's part is. Positions count up for ever; one lies at position % capacity, and what is placed
    is never split by the ring's end."""

    log: int = 0
    first: int = 0
    end: int = 0
    row: int = 0
    state: int = 0


class FragmentTable:
    """Finds, by serial number, the rows of the store at which fragments lie.

    ::

        rows    | shard 0's ring | shard 1's ring | ... | extra: fragments of this draw alone |
        states  | zero state | shard 0's ring | ... | extra |

    Each ring fills in order of arrival and forgets in that order. Used from one thread.
    """

    def __init__(self, shape: WindowShape, shards: int, capacity: Capacity, stored_states: bool) -> None:
        """
        Args:
            stored_states: windows begin with the actor's state, otherwise with zeros.
        """
        self._shape, self._capacity, self._stored_states = shape, capacity, stored_states
        self._shards = shards
        self._phase = -shape.burn_in % shape.stride
        """States lie at the steps of a fragment that leave this rest when divided by the stride."""
        self._states_each = shape.fragment // shape.stride if stored_states else 0
        """Stored states of a full fragment."""
        entries = shards * capacity.fragments + capacity.extra_fragments
        self._serials = np.full(entries, -1)
        self._row, self._state_row, self._first_step, self._num_steps, self._end, self._version = (
            np.zeros(entries, np.int64) for _ in range(6)
        )
        self._before = np.full(entries, -1)
        """Serial number of the fragment before, in the same episode; -1 where that did not come right before."""
        self._newest: dict[tuple[int, int, int], tuple[int, int]] = {}
        """Of each shard, actor and environment: sequence and serial number of its last fragment."""
        # Positions at which a fragment began, before they were wrapped.
        self._row_position, self._state_position = np.zeros(entries, np.int64), np.zeros(entries, np.int64)
        self._rings = [_Ring(first=shard * SHARD_STRIDE, end=shard * SHARD_STRIDE) for shard in range(shards)]
        self._unheld: Ints = np.zeros(0, np.int64)
        self._extra_row = self._extra_state = 0

    @property
    def num_rows(self) -> int:
        """Rows of the store: all rings and the extra part."""
        return self._shards * self._capacity.rows + self._capacity.extra_fragments * (self._shape.fragment + 1)

    @property
    def num_states(self) -> int:
        """State rows of the store, the zero state included."""
        extra = self._capacity.extra_fragments * self._states_each
        return 1 + self._shards * self._capacity.states + extra

    def held(self, shard: int, more: int) -> Held:
        """What is kept of a shard once `more` full fragments have come."""
        ring, shape, capacity = self._rings[shard], self._shape, self._capacity
        rows = ring.row + (more + 1) * (shape.fragment + 1)
        states = ring.state + (more + 1) * self._states_each
        self._forget(shard, rows - capacity.rows, states - capacity.states, ring.end + more - capacity.fragments)
        return Held(ring.log, ring.first, ring.end)

    def begin(self, shard: int, log: int, first: int) -> None:
        """The next fragments of a shard begin with this serial number; forgets all, if they do not follow those kept:
        the replay was started again, or has dropped what lay between."""
        ring = self._rings[shard]
        if ring.log != log or ring.end != first:
            ring.log, ring.first, ring.end = log, first, first
            self._newest = {source: newest for source, newest in self._newest.items() if source[0] != shard}

    def place(self, shard: int, fragment: Fragment) -> Placement:
        """Takes in the next fragment of a shard."""
        ring, capacity = self._rings[shard], self._capacity
        rows, states = fragment.num_steps + 1, len(self.state_steps(fragment))
        row = _fitting(ring.row, rows, capacity.rows)
        state = _fitting(ring.state, states, capacity.states)
        ring.row, ring.state = row + rows, state + states
        entry = shard * capacity.fragments + ring.end % capacity.fragments
        self._row_position[entry], self._state_position[entry] = row, state
        placement = Placement(
            shard * capacity.rows + row % capacity.rows, 1 + shard * capacity.states + state % max(1, capacity.states)
        )
        self._enter(entry, ring.end, fragment, placement)
        source = (shard, fragment.actor_id, fragment.env_id)
        sequence_no, serial = self._newest.get(source, (-1, -1))
        follows = fragment.first_step > 0 and fragment.sequence_no == sequence_no + 1
        self._before[entry] = serial if follows else -1
        self._newest[source] = (fragment.sequence_no, ring.end)
        ring.end += 1
        self._forget(shard, ring.row - capacity.rows, ring.state - capacity.states, ring.end - capacity.fragments)
        return placement

    def begin_extra(self, serials: Ints) -> None:
        """From now on these fragments, int64 [E] ascending, and no others lie in the extra part.

        Raises:
            DrqnError: there are more than it has room for.
        """
        if len(serials) > self._capacity.extra_fragments:
            raise DrqnError(
                f"a draw brings {len(serials):,} fragments, but there is room for {self._capacity.extra_fragments:,}"
            )
        self._unheld, self._extra_row, self._extra_state = serials, 0, 0

    def place_extra(self, index: int, fragment: Fragment) -> Placement:
        """Takes in the fragment whose serial number is the `index`-th given to `begin_extra`."""
        capacity = self._capacity
        placement = Placement(
            self._shards * capacity.rows + self._extra_row, 1 + self._shards * capacity.states + self._extra_state
        )
        self._extra_row += fragment.num_steps + 1
        self._extra_state += len(self.state_steps(fragment))
        self._enter(self._shards * capacity.fragments + index, int(self._unheld[index]), fragment, placement)
        return placement

    def state_steps(self, fragment: Fragment) -> range:
        """Steps within a fragment at which some window's burn-in begins, but for an episode's first one, where the
        state is zero."""
        if not self._stored_states:
            return range(0)
        return range(self._phase, fragment.num_steps, self._shape.stride)

    def locate(self, draws: WindowDraws) -> Windows:
        """The places of drawn windows.

        Raises:
            DrqnError: a fragment that a window reads is not here.
        """
        shape, length = self._shape, self._shape.fragment
        counts = (draws.chains >= 0).sum(1)
        everyone = np.arange(len(counts))
        entries = self._entries(draws.chains)
        last = entries[everyone, counts - 1]
        first_index = self._first_step[entries[:, 0]] // length
        final = self._first_step[last] + self._num_steps[last]  # the last observation that is known

        def entry_of(steps: Ints) -> Ints:
            place = np.minimum(steps // length - _like(first_index, steps), _like(counts, steps) - 1)
            found: Ints = entries[_like(everyone, steps), place]
            return found

        first_steps = draws.starts - shape.burn_in
        columns = np.arange(-shape.history, shape.total)
        steps = np.clip(first_steps[:, None] + columns, 0, final[:, None])
        read = entry_of(steps)
        began = np.maximum(first_steps, 0)
        began_in = entry_of(began)
        state_rows = np.zeros(len(counts), np.int64)
        if self._stored_states:
            stored = self._state_row[began_in] + (began - self._first_step[began_in] - self._phase) // shape.stride
            state_rows = np.where(began > 0, stored, 0)
        return Windows(
            rows=self._row[read] + steps - self._first_step[read],
            state_rows=state_rows,
            first_steps=first_steps,
            steps_left=np.where(self._end[last] == _ON, FAR, final - draws.starts),
            terminated=self._end[last] == _TERMINATED,
            weight_versions=self._version[began_in],
        )

    def since_start(self, start: int, chain: Ints) -> Ints | None:
        """Rows int64 [history + n] of an episode from its start to the last trained step of a window, n steps in all.

        Args:
            start: episode step at which the window's unroll begins.
            chain: int64 [C], the window's part of `WindowDraws.chains`.

        Returns:
            None if part of the episode's beginning is not kept.
        """
        ring, fragments = self._rings[chain[0] // SHARD_STRIDE], self._capacity.fragments
        offset = chain[0] // SHARD_STRIDE * fragments
        serials = [serial for serial in chain.tolist() if serial >= 0]
        if min(serials) < ring.first or max(serials) >= ring.end:  # some came along with the draw
            return None
        while self._first_step[offset + serials[0] % fragments] > 0:
            before = int(self._before[offset + serials[0] % fragments])
            if before < ring.first:
                return None
            serials.insert(0, before)
        entries = offset + np.array(serials) % fragments
        last = min(start + self._shape.unroll, int(self._first_step[entries[-1]] + self._num_steps[entries[-1]])) - 1
        steps = np.clip(np.arange(-self._shape.history, last + 1), 0, None)
        read = entries[steps // self._shape.fragment]
        rows: Ints = self._row[read] + steps - self._first_step[read]
        return rows

    def _entries(self, chains: Ints) -> Ints:
        """Places in the table int64 [N, C]; a chain's last one again where it has ended."""
        capacity = self._capacity
        shard, ended = chains // SHARD_STRIDE, chains < 0
        entries = shard * capacity.fragments + chains % capacity.fragments
        if len(self._unheld):
            place = np.minimum(np.searchsorted(self._unheld, chains), len(self._unheld) - 1)
            extra = self._unheld[place] == chains
            entries = np.where(extra, self._shards * capacity.fragments + place, entries)
        else:
            extra = np.zeros_like(ended)
        firsts, ends = (np.array(bounds) for bounds in zip(*((r.first, r.end) for r in self._rings), strict=True))
        owner = np.maximum(shard, 0)
        known = extra | ((chains >= firsts[owner]) & (chains < ends[owner]))
        wrong = ~ended & ~(known & (self._serials[np.where(ended, 0, entries)] == chains))
        if wrong.any():
            raise DrqnError(
                f"a drawn window reads fragment {chains[wrong][0]}, which the learner neither keeps nor was sent"
            )
        return np.where(ended, 0, entries)

    def _enter(self, entry: int, serial: int, fragment: Fragment, placement: Placement) -> None:
        self._serials[entry] = serial
        self._row[entry], self._state_row[entry] = placement
        self._first_step[entry], self._num_steps[entry] = fragment.first_step, fragment.num_steps
        self._end[entry] = _TERMINATED if fragment.terminated else _TRUNCATED if fragment.truncated else _ON
        self._version[entry] = fragment.weight_version

    def _forget(self, shard: int, row: int, state: int, serial: int) -> None:
        """Forgets the fragments of a shard that began before these positions, and those before this serial number."""
        ring, fragments = self._rings[shard], self._capacity.fragments
        ring.first = max(ring.first, min(serial, ring.end))
        while ring.first < ring.end:
            entry = shard * fragments + ring.first % fragments
            if self._row_position[entry] >= row and self._state_position[entry] >= state:
                break
            ring.first += 1


def check_fragment(fragment: Fragment, states: Sequence[int], shape: tuple[int, int]) -> None:
    """
    Args:
        states: steps at which it must hold a state.
        shape: [S, H] of a state.

    Raises:
        FragmentError: a state is missing or has another shape.
    """
    for step in states:
        state = fragment.states.get(step)
        if state is None:
            raise FragmentError(
                f"a fragment lacks the recurrent state before its step {step} (episode step "
                f"{fragment.first_step + step} of environment {fragment.env_id}), where a window begins; actors and "
                "learner must have the same configuration"
            )
        if state.shape != shape:
            raise FragmentError(f"a stored state has shape {state.shape}, but this run's core needs {shape}")


def _fitting(position: int, size: int, capacity: int) -> int:
    """The next position from which `size` places in a row do not cross the ring's end."""
    left = -position % capacity if capacity else 0
    return position + left if 0 < left < size else position


def _like(values: Ints, steps: Ints) -> Ints:
    """[N] → [N, 1] where steps are [N, W]."""
    return values.reshape(-1, *[1] * (steps.ndim - 1))
