"""Policy lag: updates between the acting policies and the learner."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from drqn_dist.training.session import Report
from learner.learner import LearnerStats


class PolicyLag:
    """Compares actors and learner as of the moment at which each actor told its version.

    They report pieces of about a second, each ending when it ends, and a fast learner makes hundreds of updates in that
    time: with the learner's last piece alone, an actor that took weights over since would seem to be ahead of it. The
    clocks of all nodes are taken to agree.
    """

    def __init__(self) -> None:
        self._known: list[LearnerStats] = []

    def of(self, report: Report) -> float | None:
        """Mean over the actors' pieces of a report; None without any, or before the learner's first one."""
        for piece in report.learner:
            if self._known and piece.updates < self._known[-1].updates:
                self._known.clear()  # a learner that died was set back
            self._known.append(piece)
        pieces, self._known = self._known, self._known[-2:]
        acting = [piece for piece in report.actors if piece.agent_steps]
        if not acting or not pieces:
            return None
        updates = updates_at(pieces, [piece.told_s for piece in acting])
        return float(np.mean(updates - [max(piece.weight_version, 0) for piece in acting]))


def updates_at(pieces: Sequence[LearnerStats], when: Sequence[float]) -> npt.NDArray[np.float64]:
    """float64 [N] updates done at these times, in seconds: between the ends of pieces in proportion, after the last one
    (and before the first one) at its own pace."""
    times, ends = np.array(when, np.float64), [piece.told_s for piece in pieces]
    first, last = pieces[0], pieces[-1]
    inside = np.interp(times, ends, [piece.updates for piece in pieces])
    before = np.minimum(times - first.told_s, 0.0) * _pace(first)
    return inside + np.maximum(times - last.told_s, 0.0) * _pace(last) + np.maximum(before, -float(first.new_updates))


def _pace(piece: LearnerStats) -> float:
    """Updates per second."""
    return piece.new_updates / piece.wall_s if piece.wall_s else 0.0
