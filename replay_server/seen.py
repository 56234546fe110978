"""Which sequence numbers were seen, in bounded memory."""

from bisect import bisect_right
from collections.abc import Sequence

FRESH_BASE = 2**31
"""No gap that fragments on their way leave is as wide; those of a restarted actor's numbers are wider."""


class SeenNumbers:
    """A set of integers that arrive nearly in order, kept as disjoint intervals.

    ::

        seen      0 1 2 3 4     6 7           2^32  2^32 + 1
        edges    [0,          5, 6,      8,   2^32,      2^32 + 2]      a number is seen between an even and an odd edge

    Numbers in order extend the last interval; a lost fragment or a restarted actor's fresh base leaves a gap. Past
    `MAX_INTERVALS` the oldest gap is closed: its numbers, overtaken by that many later gaps, count as seen.
    """

    MAX_INTERVALS = 64

    __slots__ = ("_edges",)

    def __init__(self, edges: Sequence[int] = ()) -> None:
        """With what was seen already, as `edges` tells it."""
        self._edges: list[int] = list(edges)

    @property
    def edges(self) -> list[int]:
        """What was seen: rising, in pairs of first and end."""
        return list(self._edges)

    def __contains__(self, number: int) -> bool:
        return bisect_right(self._edges, number) % 2 == 1

    @property
    def missing(self) -> int:
        """Numbers not seen though a later one was. A gap as wide as a fresh base leaves is none of that kind."""
        edges = self._edges
        gaps = (after - before for before, after in zip(edges[1::2], edges[2::2], strict=False))
        return sum(gap for gap in gaps if gap < FRESH_BASE)

    def add(self, number: int) -> None:
        """Marks a number as seen."""
        if number in self:
            return
        edges = self._edges
        at = bisect_right(edges, number)
        touches_left = at > 0 and edges[at - 1] == number
        touches_right = at < len(edges) and edges[at] == number + 1
        edges[at - touches_left : at + touches_right] = [number] * (not touches_left) + [number + 1] * (
            not touches_right
        )
        if len(edges) > 2 * self.MAX_INTERVALS:
            del edges[1:3]
