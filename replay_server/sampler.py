"""Windows by id: their weights, which of them can be drawn, and drawing them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from replay_server.sum_tree import Floats, Ints, SumTree

PRIORITY_FLOOR = 1e-6
"""Smallest priority that counts, so that no window is lost for ever (PER, sec. 3.3)."""

_MAX_PRIORITY = float(np.finfo(np.float32).max)
_MAX_UNFLUSHED = 8192
ID_STRIDE = 2**32
"""Ids of a replay that was started again begin so far above those of the one it replaces."""
_LARGEST_DECAY = 1 - 1e-5
"""Per new priority: a record of long ago must not outshine the present."""


class WindowSampler:
    """A ring of windows in order of arrival, drawn in proportion to priority ** exponent, or uniformly.

    ::

        id       ... gone | oldest_id ................... next_id | not yet ...          ids count up for ever
        slot              id % capacity: drawable?, weight, owner                        capacity doubles when full

    A sum tree over the slots holds weight where drawable and 0 elsewhere. It is brought up to date only before it is
    read, for all changed slots at once. Not thread-safe.
    """

    def __init__(
        self, prioritized: bool, exponent: float, seed: int, enter_at_largest: bool = False, first_id: int = 0
    ) -> None:
        """
        Args:
            prioritized: draw in proportion to priority ** exponent, otherwise uniformly.
            enter_at_largest: new windows get the largest weight of late instead of that of their own priority.
            first_id: of the first window; later ones count up from there.
        """
        self._prioritized = prioritized
        self._exponent = exponent
        self._enter_at_largest = enter_at_largest
        self._largest = 1.0
        self._rng = np.random.default_rng(seed)
        self._tree = SumTree(1024)
        self._weights: Floats = np.zeros(1024)
        self._drawable: npt.NDArray[np.bool_] = np.zeros(1024, np.bool_)
        self._owners: Ints = np.zeros(1024, np.int64)
        self._unflushed: list[int] = []
        self.oldest_id = first_id
        self.next_id = first_id
        self.population = 0
        """Windows that can be drawn."""

    def append(self, owner: int, priorities: npt.NDArray[np.float32]) -> int:
        """Adds windows, not yet drawable, and returns the first one's id; float32 [W], O(W) amortised."""
        while self.next_id + len(priorities) - self.oldest_id > self._tree.capacity:
            self._grow()
        first = self.next_id
        self.next_id += len(priorities)
        slots = np.arange(first, self.next_id) % self._tree.capacity
        self._weights[slots] = (
            self._largest if self._enter_at_largest else self._to_weights(priorities.astype(np.float64))
        )
        self._owners[slots] = owner
        return first

    @property
    def scale(self) -> str:
        """What weights are, for whoever keeps them."""
        return f"priority ** {self._exponent}" if self._prioritized else "1 each"

    def begin_at(self, first_id: int) -> None:
        """The first window, which has not come yet, gets this id."""
        assert self.oldest_id == self.next_id
        self.oldest_id = self.next_id = first_id

    def set_weights(self, first: int, weights: Floats) -> None:
        """Gives the windows from id `first` on weights float64 [W] that they had before, instead of priorities."""
        slots = np.arange(first, first + len(weights)) % self._tree.capacity
        self._weights[slots] = weights if self._prioritized else 1.0
        self._touch(slots.tolist())

    def weights(self) -> Floats:
        """Of all windows held, float64 [W] by id."""
        return self._weights[np.arange(self.oldest_id, self.next_id) % self._tree.capacity]

    def set_drawable(self, first: int, end: int, drawable: bool) -> None:
        """Lets the windows first..end-1 be drawn, or no longer; all of them change."""
        if first == end:
            return
        capacity = self._tree.capacity
        slots = [window % capacity for window in range(first, end)]  # a fragment's few: quicker one by one
        for slot in slots:
            self._drawable[slot] = drawable
        self.population += (end - first) * (1 if drawable else -1)
        self._touch(slots)

    def forget_before(self, oldest_id: int) -> None:
        """Drops all windows before `oldest_id`; none of them may be drawable."""
        self.oldest_id = oldest_id

    def draw(self, counts: Sequence[int]) -> tuple[Ints, Floats]:
        """Ids int64 [N] of batches of these sizes, one after the other, and the probabilities float64 [N] they were
        drawn with; O(N log windows) in log windows array operations.

        Raises:
            ValueError: nothing can be drawn.
        """
        if self.population == 0:
            raise ValueError("no window can be drawn")
        self._flush()
        slots = self._tree.draw(counts, self._rng)
        ids = self.oldest_id + (slots - self.oldest_id) % self._tree.capacity
        return ids, self._tree.get(slots) / self._tree.total

    def mass(self) -> float:
        """Sum of the weights of all windows that can be drawn."""
        self._flush()
        return self._tree.total

    def owners(self, ids: Ints) -> Ints:
        """The owners int64 [N] given to `append` for living windows int64 [N]."""
        return self._owners[ids % self._tree.capacity]

    def update(self, ids: Ints, priorities: Floats) -> int:
        """Sets new priorities float64 [N] of windows int64 [N]; returns how many of them came too late.

        Raises:
            ValueError: shapes differ, or a priority is negative, not finite or beyond float32; nothing is changed.
        """
        ids = np.asarray(ids, np.int64)
        priorities = np.asarray(priorities, np.float64)
        if ids.ndim != 1 or ids.shape != priorities.shape:
            raise ValueError(f"ids {ids.shape} and priorities {priorities.shape} must both have shape [N]")
        wrong = ~((priorities >= 0) & (priorities <= _MAX_PRIORITY))
        if wrong.any():
            raise ValueError(
                f"priority of window {ids[wrong][0]} is {priorities[wrong][0]}; priorities must be finite and not "
                "negative: the learner's Q values have diverged"
            )
        known = (ids >= self.oldest_id) & (ids < self.next_id)
        known[known] = self._drawable[ids[known] % self._tree.capacity]
        slots = ids[known] % self._tree.capacity
        weights = self._to_weights(priorities[known])
        self._weights[slots] = weights
        self._largest = float(weights.max(initial=self._largest * _LARGEST_DECAY ** len(ids)))
        self._touch(slots.tolist())
        return len(ids) - len(slots)

    def get_state(self) -> dict[str, Any]:
        """Random state and next id, for JSON; not the windows."""
        return {
            "rng": self._rng.bit_generator.state,
            "next_id": self.next_id,
            "largest": self._largest,
            "capacity": self._tree.capacity,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on drawing and numbering from there; windows already held stay as they are."""
        self._rng.bit_generator.state = state["rng"]
        self._largest = float(state["largest"])
        if self.oldest_id == self.next_id < int(state["next_id"]):
            while self._tree.capacity < int(state["capacity"]):  # draws are bit for bit those of a tree as large
                self._grow()
            # The state may be older than the last ids given out: priorities of those must not find new windows.
            self.oldest_id = self.next_id = max(self.next_id, int(state["next_id"]) + ID_STRIDE)

    def _to_weights(self, priorities: Floats) -> Floats:
        if not self._prioritized:
            return np.ones(len(priorities))
        weights: Floats = np.maximum(priorities, PRIORITY_FLOOR) ** self._exponent
        return weights

    def _touch(self, slots: Sequence[int]) -> None:
        self._unflushed.extend(slots)
        if len(self._unflushed) >= _MAX_UNFLUSHED:
            self._flush()

    def _flush(self) -> None:
        if self._unflushed:
            slots = np.array(self._unflushed)
            self._unflushed.clear()
            self._tree.set(slots, np.where(self._drawable[slots], self._weights[slots], 0.0))

    def _grow(self) -> None:
        ids = np.arange(self.oldest_id, self.next_id)
        capacity = 2 * self._tree.capacity
        old, new = ids % self._tree.capacity, ids % capacity
        weights, drawable, owners = self._weights[old], self._drawable[old], self._owners[old]
        self._tree = SumTree(capacity)
        self._weights, self._drawable = np.zeros(capacity), np.zeros(capacity, np.bool_)
        self._owners = np.zeros(capacity, np.int64)
        self._weights[new], self._drawable[new], self._owners[new] = weights, drawable, owners
        self._unflushed = new.tolist()
