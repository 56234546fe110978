"""A sum tree over float64 weights, vectorised over slots."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class SumTree:
    """Weights of `capacity` slots, and drawing a slot in proportion to its weight.

    A heap in one array; here for capacity 4::

                          1: w0+w1+w2+w3
                     /                     \\
               2: w0+w1                    3: w2+w3
               /       \\                   /       \\
          4: w0        5: w1          6: w2        7: w3        (index 0 is unused)

    Node i has the children 2i and 2i+1; slot s is leaf capacity + s. Inner nodes are always recomputed from their
    children, never adjusted by differences, so rounding does not pile up. Setting or drawing n slots costs
    O(n log capacity) in log capacity array operations. Not thread-safe.
    """

    def __init__(self, capacity: int) -> None:
        """`capacity` slots, a power of two, all of weight 0."""
        if capacity < 1 or capacity & (capacity - 1):
            raise ValueError(f"capacity must be a power of two, got {capacity}")
        self.capacity = capacity
        self._depth = capacity.bit_length() - 1
        self._nodes: Floats = np.zeros(2 * capacity)

    @property
    def total(self) -> float:
        """Sum of all weights."""
        return float(self._nodes[1])

    def get(self, slots: Ints) -> Floats:
        """Weights float64 [N] of slots int64 [N]."""
        return self._nodes[slots + self.capacity]

    def set(self, slots: Ints, weights: Floats) -> None:
        """Sets weights float64 [N] of slots int64 [N]; the last one counts where a slot comes twice."""
        nodes = slots + self.capacity
        self._nodes[nodes] = weights
        pairs = self._nodes.reshape(-1, 2)
        for _ in range(self._depth):
            nodes = nodes >> 1
            children = pairs[nodes]
            self._nodes[nodes] = children[:, 0] + children[:, 1]

    def find(self, targets: Floats) -> Ints:
        """The slots int64 [N] at whose weight the running sum of all weights first exceeds targets float64 [N].

        Targets lie in [0, total]; a slot of weight 0 is never found unless all are 0.
        """
        nodes = np.ones(len(targets), np.int64)
        remaining = np.array(targets, np.float64)
        for _ in range(self._depth):
            left = nodes << 1
            left_sums = self._nodes[left]
            # Rounding can carry a target to the end of a subtree: it must not fall off into an empty right half.
            go_right = (remaining >= left_sums) & (self._nodes[left + 1] > 0)
            remaining = np.where(go_right, remaining - left_sums, remaining)
            nodes = left + go_right
        return nodes - self.capacity

    def draw(self, counts: Sequence[int], rng: np.random.Generator) -> Ints:
        """Draws batches of these sizes with replacement, int64 [Σ counts], one batch after the other; each of a batch
        of n slots comes from another of n equal shares of the total (PER, app. B.2.1).

        Each draw's share is uniform, so a batch holds slot s n * weight / total times on average.
        """
        sizes = np.asarray(counts, np.int64)
        place = np.arange(sizes.sum()) - np.repeat(sizes.cumsum() - sizes, sizes)
        return self.find((place + rng.random(len(place))) * (self.total / np.repeat(sizes, sizes)))
