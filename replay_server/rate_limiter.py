"""Holds the replay ratio: who is too far ahead waits."""

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from drqn_dist.errors import ConfigError, ReplayStopped


@dataclass(frozen=True)
class Balance:
    """What one rate limiter has counted; those of several shards add up to that of the whole replay."""

    filled_steps: int = 0
    """Steps inserted since the limiter was made."""
    debt: int = 0
    """In the q-th part of a step, where the ratio is p / q: whole numbers are exact, and quick."""
    drawable: bool = False
    """Whether anything can be sampled."""

    def __add__(self, other: "Balance") -> "Balance":
        return Balance(self.filled_steps + other.filled_steps, self.debt + other.debt, self.drawable or other.drawable)


class RateLimiter:
    """Keeps sampled steps near `samples_per_insert` times inserted steps (Reverb's SampleToInsertRatio).

    ::

        debt = samples_per_insert * (inserted steps that count) - sampled steps, kept within +- tolerance:

        -tolerance                       0                       +tolerance       (tolerance_steps * samples_per_insert)
            |----------------------------|----------------------------|
            sampling would cross: waits                  inserting would cross: waits

    Inserts count once `min_steps` were inserted since this object was made and something can be drawn. Those before
    are free: filling the replay, at the start or again after a resume, neither waits nor earns a burst of updates.
    Debt is exact, so the ratio does not drift.

    The ratio is that of the whole replay: a limiter of one shard of several adds what those elsewhere have counted,
    as far as it was told (`set_elsewhere`). Each counts its own inserts and samples alone, so that the sum is exact.

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
                f"{insert_steps:,} steps and one call samples {sample_steps:,} steps, worth "
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
        self._ratio = ratio
        self._per_insert, self._per_sample = ratio.numerator, ratio.denominator
        self._tolerance = tolerance_steps * self._per_insert
        self._min_steps = min_steps
        self._own = Balance()
        self._elsewhere = Balance()
        self._stopped = False

    def can_insert(self, steps: int) -> bool:
        """Whether an insert would not wait."""
        with self.condition:
            balance = self._own + self._elsewhere
            return not self._ready(balance) or balance.debt + steps * self._per_insert <= self._tolerance

    def can_sample(self, steps: int) -> bool:
        """Whether a sample would not wait."""
        with self.condition:
            balance = self._own + self._elsewhere
            return self._ready(balance) and balance.debt - steps * self._per_sample >= -self._tolerance

    def await_insert(
        self, steps: int, timeout_s: float | None = None, unless: Callable[[], bool] = lambda: False
    ) -> bool:
        """Waits until `can_insert(steps)` or `unless()`; False if neither came true in time.

        Raises:
            ReplayStopped: `stop` was called.
        """
        return self._await(lambda: self.can_insert(steps) or unless(), timeout_s)

    def await_sample(self, steps: int, timeout_s: float | None = None) -> bool:
        """Waits until `can_sample(steps)`; False if that did not come true in time.

        Raises:
            ReplayStopped: `stop` was called.
        """
        return self._await(lambda: self.can_sample(steps), timeout_s)

    def record_insert(self, steps: int, drawable: bool = True) -> None:
        """Counts an insert; `drawable` tells whether anything can be sampled after it."""
        with self.condition:
            self.inserted_steps += steps
            debt = self._own.debt
            if self._ready(self._own + self._elsewhere):
                self.counted_steps += steps
                debt += steps * self._per_insert
            self._own = Balance(self._own.filled_steps + steps, debt, drawable)
            self.condition.notify_all()

    def record_sample(self, steps: int) -> None:
        """Counts a sample."""
        with self.condition:
            self.sampled_steps += steps
            self._own = replace(self._own, debt=self._own.debt - steps * self._per_sample)
            self.condition.notify_all()

    def balance(self) -> Balance:
        """What this one has counted, without what it was told of others."""
        with self.condition:
            return self._own

    def set_elsewhere(self, balance: Balance) -> None:
        """Takes in what the limiters of all other shards have counted together."""
        with self.condition:
            self._elsewhere = balance
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
                "debt": self._own.debt,
                "filled_steps": self._own.filled_steps,
                "bounds": self._bounds(),
            }

    def refill(self, filled_steps: int, inserted_steps: int, drawable: bool) -> None:
        """Takes in what was stored and counted before: it fills the replay, but earns no samples again.

        Args:
            filled_steps: steps stored.
            inserted_steps: steps inserted over the whole run, if that is more than what was known.
            drawable: whether anything can be sampled.
        """
        with self.condition:
            self.inserted_steps = max(self.inserted_steps, inserted_steps)
            self._own = replace(self._own, filled_steps=filled_steps, drawable=drawable)
            self.condition.notify_all()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from these counters; `min_steps` is still counted from when this object was made."""
        with self.condition:
            self.inserted_steps = int(state["inserted_steps"])
            self.counted_steps = int(state["counted_steps"])
            self.sampled_steps = int(state["sampled_steps"])
            # With another ratio or tolerance than before, the saved debt could lie out of reach of both sides.
            same = state["bounds"] == self._bounds()
            self._own = replace(self._own, debt=int(state["debt"]) if same else 0)
            self.condition.notify_all()

    def _bounds(self) -> list[str]:
        return [str(self._ratio), str(self._tolerance)]

    def _ready(self, balance: Balance) -> bool:
        return balance.drawable and balance.filled_steps >= self._min_steps

    def _await(self, predicate: Callable[[], bool], timeout_s: float | None) -> bool:
        with self.condition:
            held = self.condition.wait_for(lambda: self._stopped or predicate(), timeout_s)
        if self._stopped:
            raise ReplayStopped("the replay was stopped")
        return held
