"""How long something took, by the clock and in CPU time."""

from __future__ import annotations

import time


class Stopwatch:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._began = (time.perf_counter(), time.process_time())

    def lap(self) -> tuple[float, float]:
        """Seconds by the clock, and CPU seconds of all threads of this process, since the last lap; starts the next."""
        now = (time.perf_counter(), time.process_time())
        (wall, cpu), self._began = self._began, now
        return now[0] - wall, now[1] - cpu
