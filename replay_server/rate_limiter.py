"""Holds the replay ratio: who is too far ahead waits."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from drqn_dist.errors import ConfigError, ReplayStopped


class RateLimiter:
    """Keeps sampled steps near `samples_per_insert` times inserted steps (Reverb's SampleToInsertRatio).

    ::

        debt = samples_per_insert * (inserted steps that count) - sampled steps, kept within +- tolerance:

        -tolerance                       0                       +tolerance       (tolerance_steps * samples_per_insert)
            |----------------------------|----------------------------|
            sampling would cross: waits                  inserting would cross: waits

    Inserts count once `min_steps` were inserted since this object was made and something can be drawn. Those before
    are free: filling the replay, at the start or again after a resume, neither waits nor earns a burst of updates.
    Debt is an exact fraction, so the ratio does not drift.

    All methods may be called from any thread. Waiting is done on `condition`; a caller who holds it across
    `await_*` and `record_*` makes both one atomic step.
    """

    def __init__(
        self,
        samples_per_insert: float,
        min_steps: int,
        tolerance_steps: int,
        insert_steps: int,
        sample_steps: int,
    ) -> None:
        """
        Args:
            samples_per_insert: steps sampled per step inserted, in the long run.
            min_steps: steps inserted before the first sample.
            tolerance_steps: inserted steps that either side may be ahead.
            insert_steps: most steps of one insert.
            sample_steps: steps of one sample.

        Raises:
            ConfigError: the tolerance is smaller than one insert or one sample, so that both sides could wait for
                each other.
        """
        # The decimal number as written, not its binary neighbour: 0.3 is 3/10.
        ratio = Fraction(str(samples_per_insert))
        needed = math.ceil(max(Fraction(insert_steps), sample_steps / ratio))
        if tolerance_steps < needed:
            raise ConfigError(
                f"replay.rate_tolerance_steps ({tolerance_steps:,}) is too small: one fragment inserts up to "
                f"{insert_steps:,} steps and one batch trains {sample_steps:,} steps, worth "
                f"{float(sample_steps / ratio):,.1f} inserted ones at {samples_per_insert:g} samples per insert, so "
                f"actors and learner could wait for each other; set it to {needed:,} or more, or to 0 for automatic"
            )
        self.condition = threading.Condition()
        self.inserted_steps = 0
        """Steps inserted over the whole run."""
        self.counted_steps = 0
        """Those of them that count towards the ratio."""
        self.sampled_steps = 0
        """Steps sampled over the whole run."""
        self.blocked_insert_s = 0.0
        """Seconds that inserts have waited, of all threads together."""
        self.blocked_sample_s = 0.0
        """Seconds that samples have waited."""
        self._ratio = ratio
        self._tolerance = tolerance_steps * ratio
        self._debt = Fraction(0)
        self._steps_until_ready = min_steps
        self._drawable = False
        self._stopped = False

    def can_insert(self, steps: int) -> bool:
        """Whether an insert would not wait."""
        with self.condition:
            return not self._ready or self._debt + steps * self._ratio <= self._tolerance

    def can_sample(self, steps: int) -> bool:
        """Whether a sample would not wait."""
        with self.condition:
            return self._ready and self._debt - steps >= -self._tolerance

    def await_insert(
        self, steps: int, timeout_s: float | None = None, unless: Callable[[], bool] = lambda: False
    ) -> bool:
        """Waits until `can_insert(steps)` or `unless()`; False if neither came true in time.

        Raises:
            ReplayStopped: `stop` was called.
        """
        with self.condition:
            began = time.monotonic()
            try:
                return self._await(lambda: self.can_insert(steps) or unless(), timeout_s)
            finally:
                self.blocked_insert_s += time.monotonic() - began

    def await_sample(self, steps: int, timeout_s: float | None = None) -> bool:
        """Waits until `can_sample(steps)`; False if that did not come true in time.

        Raises:
            ReplayStopped: `stop` was called.
        """
        with self.condition:
            began = time.monotonic()
            try:
                return self._await(lambda: self.can_sample(steps), timeout_s)
            finally:
                self.blocked_sample_s += time.monotonic() - began

    def record_insert(self, steps: int, drawable: bool = True) -> None:
        """Counts an insert; `drawable` tells whether anything can be sampled after it."""
        with self.condition:
            self.inserted_steps += steps
            if self._ready:
                self.counted_steps += steps
                self._debt += steps * self._ratio
            self._steps_until_ready = max(0, self._steps_until_ready - steps)
            self._drawable = drawable
            self.condition.notify_all()

    def record_sample(self, steps: int) -> None:
        """Counts a sample."""
        with self.condition:
            self.sampled_steps += steps
            self._debt -= steps
            self.condition.notify_all()

    def stop(self) -> None:
        """Wakes all who wait; they and all who come later get ReplayStopped."""
        with self.condition:
            self._stopped = True
            self.condition.notify_all()

    def get_state(self) -> dict[str, Any]:
        """The counters, for JSON."""
        with self.condition:
            return {
                "inserted_steps": self.inserted_steps,
                "counted_steps": self.counted_steps,
                "sampled_steps": self.sampled_steps,
                "debt": str(self._debt),
            }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from these counters; `min_steps` is still counted from when this object was made."""
        with self.condition:
            self.inserted_steps = int(state["inserted_steps"])
            self.counted_steps = int(state["counted_steps"])
            self.sampled_steps = int(state["sampled_steps"])
            # With another ratio or tolerance than before, the saved debt could lie out of reach of both sides.
            self._debt = min(max(Fraction(state["debt"]), -self._tolerance), self._tolerance)
            self.condition.notify_all()

    @property
    def _ready(self) -> bool:
        return self._drawable and self._steps_until_ready == 0

    def _await(self, predicate: Callable[[], bool], timeout_s: float | None) -> bool:
        held = self.condition.wait_for(lambda: self._stopped or predicate(), timeout_s)
        if self._stopped:
            raise ReplayStopped("the replay was stopped")
        return held
