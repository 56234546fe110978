"""Repeated measurements and what they come to."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any


class Figures:
    """Collects measurements by name."""

    def __init__(self) -> None:
        self._values: defaultdict[str, list[float]] = defaultdict(list)

    def add(self, **values: float) -> None:
        for name, value in values.items():
            self._values[name].append(value)

    def result(self) -> dict[str, Any]:
        """{name: median of its measurements, ..., "spread": {name: [least, greatest]}}"""
        medians: dict[str, Any] = {name: statistics.median(values) for name, values in self._values.items()}
        return medians | {"spread": {name: [min(values), max(values)] for name, values in self._values.items()}}


def rate(work: Callable[[], int], seconds: float) -> float:
    """Units of work per second, over calls of `work`, each of which answers how many it did, for about `seconds`."""
    start, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds or not done:
        done += work()
    return done / elapsed
