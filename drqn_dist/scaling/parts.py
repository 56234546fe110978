"""Parts of the simulated pipeline: cores that processes share, a server with a queue, the rate limiter, a link."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from itertools import count
from typing import Any

import simpy

Steps = Generator[simpy.Event, Any, None]
"""What a simpy process is."""


class Meter:
    """How long something was in a state so far; several that are at once count several times."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self._ended = 0.0
        self._inside = 0

    def enter(self) -> None:
        self._inside += 1
        self._ended -= self._env.now

    def leave(self) -> None:
        self._inside -= 1
        self._ended += self._env.now

    @property
    def seconds(self) -> float:
        return self._ended + self._inside * self._env.now


@dataclass(frozen=True)
class Crowding:
    """How much more CPU time the same work takes on a busy machine, 0.1 = 10 %."""

    neighbours: float = 0.0
    """With one process on every core: they share caches, memory and clock."""
    turns: float = 0.0
    """With two on every core, beyond that: each finds its caches filled by the other."""

    def slowdown(self, runnable: float, cores: float) -> float:
        """CPU time of work while so many processes could run, over that of a process alone."""
        busy = max(0.0, min(runnable, cores) - 1) / (cores - 1) if cores > 1 else 0.0
        return (1 + self.neighbours * busy) * (1 + self.turns * sharing(runnable, cores))


UNCROWDED = Crowding()


def sharing(runnable: float, cores: float) -> float:
    """Share of the processes that take turns on a core: of n on C cores 2(n - C), and all from n = 2C on."""
    return min(1.0, 2 * max(0.0, runnable - cores) / runnable) if runnable else 0.0


class Cores:
    """The cores of one node, shared evenly by the jobs that run on it (one thread each).

    With n jobs on C cores each job advances by min(1, C / n) CPU seconds per second, less by the crowding's slowdown.

    All jobs advance alike, so the one with the least work left ends first. Work is therefore counted on one clock that
    runs at the common speed, each job ends at its own mark on it, and a heap knows the next; O(log n) a job.
    """

    def __init__(self, env: simpy.Environment, cores: float, crowding: Crowding = UNCROWDED) -> None:
        self._env, self._cores, self._crowding = env, cores, crowding
        self._jobs: list[tuple[float, int, simpy.Event]] = []
        self._number = count()
        self._clock = self._since = 0.0
        self._alarm = 0
        self._busy_s = 0.0

    def busy(self) -> float:
        """Core seconds that jobs have occupied so far."""
        self._advance()
        return self._busy_s

    def run(self, seconds: float) -> simpy.Event:
        """An event that comes when a job of so many CPU seconds is done."""
        self._advance()
        done = self._env.event()
        heapq.heappush(self._jobs, (self._clock + seconds, next(self._number), done))
        self._set_alarm()
        return done

    @property
    def _speed(self) -> float:
        jobs = len(self._jobs)
        return min(jobs, self._cores) / jobs / self._crowding.slowdown(jobs, self._cores)

    def _advance(self) -> None:
        elapsed, self._since = self._env.now - self._since, self._env.now
        if self._jobs:
            self._clock += elapsed * self._speed
            self._busy_s += elapsed * min(len(self._jobs), self._cores)

    def _set_alarm(self) -> None:
        self._alarm += 1
        if self._jobs:
            left = max(0.0, self._jobs[0][0] - self._clock)
            alarm = self._env.timeout(left / self._speed, value=self._alarm)
            assert alarm.callbacks is not None
            alarm.callbacks.append(self._ring)

    def _ring(self, alarm: simpy.Event) -> None:
        if alarm.value != self._alarm:
            return  # jobs came or went since it was set
        self._advance()
        self._clock = max(self._clock, self._jobs[0][0])  # the alarm is exact, sums of floats are not
        while self._jobs and self._jobs[0][0] <= self._clock:
            heapq.heappop(self._jobs)[2].succeed()
        self._set_alarm()


class Server:
    """One process that serves calls one after the other, first come first served, on its node's cores."""

    def __init__(self, env: simpy.Environment, cores: Cores) -> None:
        self._env, self._cores = env, cores
        self._turn = simpy.Resource(env)
        self.busy = Meter(env)

    def serve(self, seconds: float) -> Steps:
        """Waits for its turn and takes so many CPU seconds."""
        with self._turn.request() as turn:
            yield turn
            self.busy.enter()
            yield self._cores.run(seconds)
            self.busy.leave()


class Limiter:
    """The replay's rate limiter: its debt, ratio · inserted − sampled, stays within ± tolerance, and each side waits in
    order."""

    def __init__(self, env: simpy.Environment, ratio: float, tolerance_steps: float) -> None:
        """
        Args:
            ratio: samples per insert; 0: nobody ever waits to insert, and nobody samples.
            tolerance_steps: inserted steps that either side may be ahead.
        """
        self._env, self._ratio = env, ratio
        self._tolerance = tolerance_steps * ratio
        self._debt = 0.0
        self._inserts: deque[tuple[float, simpy.Event]] = deque()
        self._samples: deque[tuple[float, simpy.Event]] = deque()

    def insert(self, steps: float) -> simpy.Event:
        return self._enter(self._inserts, steps)

    def sample(self, steps: float) -> simpy.Event:
        return self._enter(self._samples, steps)

    @property
    def debt(self) -> float:
        """As a share of the tolerance, -1 … 1: positive where inserts are ahead."""
        return self._debt / self._tolerance if self._tolerance else 0.0

    def drive(self, share: float) -> None:
        """Sets the debt to a share of the tolerance, -1 … 1, unless it is beyond that already."""
        self._debt = (max if share > 0 else min)(self._debt, share * self._tolerance)
        self._let_in()

    def _enter(self, line: deque[tuple[float, simpy.Event]], steps: float) -> simpy.Event:
        entered = self._env.event()
        line.append((steps, entered))
        self._let_in()
        return entered

    def _let_in(self) -> None:
        moved = True
        while moved:
            moved = False
            if self._inserts and (gain := self._inserts[0][0] * self._ratio) + self._debt <= self._tolerance + 1e-9:
                self._debt += gain
                self._inserts.popleft()[1].succeed()
                moved = True
            if self._samples and self._debt - (loss := self._samples[0][0]) >= -self._tolerance - 1e-9:
                self._debt -= loss
                self._samples.popleft()[1].succeed()
                moved = True


class Link:
    """One direction of a node's network link; messages leave one after the other."""

    def __init__(self, env: simpy.Environment, bytes_per_s: float, latency_s: float) -> None:
        self._env, self._bytes_per_s, self._latency_s = env, bytes_per_s, latency_s
        self._free_at = 0.0
        self.busy_s = 0.0
        """Seconds in which it was sending."""

    def delay(self, size: float) -> float:
        """Takes a message of so many bytes; answers the seconds until it has arrived."""
        spent = size / self._bytes_per_s
        self._free_at = max(self._env.now, self._free_at) + spent
        self.busy_s += spent
        return self._free_at - self._env.now + self._latency_s
