"""Measures one point: a run of so many actors, its steady state."""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import psutil

from actors.actor import ActorStats
from drqn_dist.config import TrainConfig
from drqn_dist.distributed.supervisor import START_S, RaySession
from drqn_dist.envs.make import env_spec
from drqn_dist.errors import ConfigError, RoleFailedError
from drqn_dist.interfaces import EnvSpec
from drqn_dist.scaling.points import Point
from drqn_dist.scaling.settings import point_config
from drqn_dist.training.lag import PolicyLag
from drqn_dist.training.memory import FRAGMENT_OVERHEAD_BYTES, batches_per_draw, check_memory
from drqn_dist.training.session import Report
from learner.learner import LearnerStats

_REPORT_S = 1.0
_ACTOR_PARTS = {
    "env": "env_s",
    "inference": "policy_s",
    "build": "build_s",
    "encode": "encode_s",
    "push": "push_s",
    "weights": "weights_s",
}
_LEARNER_PARTS = {"wait": "wait_s", "train": "train_s"}


def measure(
    config: TrainConfig, actors: int, envs_per_actor: int, learner: bool, warmup_s: float, seconds: float, repeat: int
) -> Point:
    """Starts a run, waits until every role works and `warmup_s` longer, and measures for about `seconds`.

    Raises:
        ConfigError: the configuration cannot run here.
        RoleFailedError: a process failed, so the measurement is void.
    """
    config = tightened(point_config(config, actors, envs_per_actor, learner), env_spec(config.env))
    check_point(config, learner)
    with closing(RaySession(config)) as session:
        _start_up(session, actors, learner)
        _reports(session, warmup_s)
        window = Window(session)
        for report in _reports(session, seconds):
            window.add(report)
        return window.point(config, learner, repeat)


def tightened(config: TrainConfig, spec: EnvSpec) -> TrainConfig:
    """With the least slack in the rate limiter that still lets each side do its work in one piece, unless a slack is
    set. With a run's automatic slack, minutes can pass before the replay ratio holds anybody up."""
    learning, replay = config.learner, config.replay
    drawn = batches_per_draw(config, spec) * learning.batch_windows * learning.unroll_steps
    cut = config.total_envs * config.window.fragment  # all environments may end their fragments together
    slack = replay.rate_tolerance_steps or max(cut, math.ceil(drawn / replay.samples_per_insert))
    return replace(config, replay=replace(replay, rate_tolerance_steps=slack))


def check_point(config: TrainConfig, learner: bool) -> None:
    """
    Raises:
        ConfigError: it does not fit into memory.
    """
    if not learner:  # the bound on steps is out of reach; count as many as the bytes can hold
        fragments = config.replay.capacity_bytes // FRAGMENT_OVERHEAD_BYTES
        replay = replace(config.replay, min_steps=1, capacity_steps=fragments * config.window.fragment)
        config = replace(config, replay=replay)
    check_memory(config, env_spec(config.env))


def _start_up(session: RaySession, actors: int, learner: bool) -> None:
    """Returns once every actor has stepped and, if there is to be one, the learner has trained."""
    deadline = time.monotonic() + START_S
    acting: set[int] = set()
    trains = not learner
    while len(acting) < actors or not trains:
        if time.monotonic() > deadline:
            what = f"{actors - len(acting)} of {actors} actors" if len(acting) < actors else "the learner"
            raise RoleFailedError(f"{what} did nothing for {START_S:.0f} s; try fewer actors or a lower min_steps")
        for report in _reports(session, _REPORT_S):
            acting |= {piece.index for piece in report.actors if piece.agent_steps}
            trains |= any(piece.new_updates for piece in report.learner)


def _reports(session: RaySession, seconds: float) -> list[Report]:
    """What the run reports in so many seconds."""
    deadline, found = time.monotonic() + seconds, []
    while (left := deadline - time.monotonic()) > 0:
        found.append(session.advance(min(left, _REPORT_S)))
        if found[-1].events:
            raise RoleFailedError(
                f"the measurement was disturbed: {found[-1].events[0]}; start the sweep again to go on"
            )
    return found


class Window:
    """A stretch of time that is measured, from the making of this object on.

    Actors and learner report pieces of about a second, each with its own length; rates are taken over those lengths.
    CPU time of the other processes is read at both ends.
    """

    def __init__(self, session: RaySession) -> None:
        self._session = session
        self._actors: list[ActorStats] = []
        self._learner: list[LearnerStats] = []
        self._lag, self._lags = PolicyLag(), list[float]()
        self._counters: list[tuple[int, int]] = []
        self._cpu = self._cpu_s()
        self._began = time.monotonic()

    def add(self, report: Report) -> None:
        self._actors += report.actors
        self._learner += report.learner
        if (lag := self._lag.of(report)) is not None:
            self._lags.append(lag)
        if report.replay is not None:
            self._counters.append((report.replay.sampled_steps, report.replay.inserted_steps))

    def point(self, config: TrainConfig, learner: bool, repeat: int) -> Point:
        elapsed = time.monotonic() - self._began
        cores = {name: (cpu_s - self._cpu[name]) / elapsed for name, cpu_s in self._cpu_s().items()}
        silent = set(range(config.actors)) - {piece.index for piece in self._actors}
        if silent:
            raise ConfigError(
                f"{len(silent)} of {config.actors} actors reported nothing in {elapsed:.1f} s; measure longer "
                "(--seconds, into another --out)"
            )
        learner_wall_s = sum(piece.wall_s for piece in self._learner)
        return Point(
            actors=config.actors,
            envs_per_actor=config.actor.envs_per_actor,
            learner=learner,
            repeat=repeat,
            seconds=elapsed,
            agent_steps_per_s=_per_actor(self._actors, "agent_steps"),
            fragments_per_s=_per_actor(self._actors, "fragments"),
            updates_per_s=_ratio(sum(piece.new_updates for piece in self._learner), learner_wall_s),
            samples_per_insert=self._samples_per_insert() if learner else None,
            policy_lag=float(np.mean(self._lags)) if self._lags and learner else None,
            cores=cores
            | {
                "actors": _per_actor(self._actors, "cpu_s"),
                "learner": _ratio(sum(piece.cpu_s for piece in self._learner), learner_wall_s),
            },
            actor_time=shares(self._actors, _ACTOR_PARTS),
            learner_time=shares(self._learner, _LEARNER_PARTS),
        )

    def _cpu_s(self) -> dict[str, float]:
        """CPU seconds so far, but for actors and learner, which report their own."""
        replays = self._session.work()[0]
        return {"replay": sum(work.cpu_s for work in replays), "ray": _ray_cpu_s(), "machine": busy_cpu_s()}

    def _samples_per_insert(self) -> float | None:
        if len(self._counters) < 2 or self._counters[-1][1] == self._counters[0][1]:
            return None
        (sampled, inserted), (sampled_then, inserted_then) = self._counters[-1], self._counters[0]
        return (sampled - sampled_then) / (inserted - inserted_then)


def shares(pieces: Sequence[ActorStats] | Sequence[LearnerStats], parts: dict[str, str]) -> dict[str, float]:
    """What each part and the rest take of the pieces' wall-clock time. They add up to 1 even where clocks disagree.

    Args:
        parts: names of the parts and of the fields with their seconds.
    """
    spent = {part: sum(max(0.0, getattr(piece, name)) for piece in pieces) for part, name in parts.items()}
    whole = max(sum(piece.wall_s for piece in pieces), sum(spent.values()), 1e-12)
    return {part: seconds / whole for part, seconds in spent.items()} | {
        "other": max(0.0, 1 - sum(spent.values()) / whole)
    }


def busy_cpu_s() -> float:
    """CPU seconds so far of everything that runs on the cores that this process may use. A container that is bounded by
    a quota instead of by cores sees its host's."""
    times = psutil.cpu_times(percpu=True)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(times))
    kinds = ("user", "system", "nice", "irq", "softirq")
    return sum(getattr(times[core], kind, 0.0) for core in usable if core < len(times) for kind in kinds)


def _per_actor(pieces: Sequence[ActorStats], name: str) -> float:
    """A count per second, of all actors together; each one's is taken over its own pieces."""
    totals: defaultdict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for piece in pieces:
        totals[piece.index][0] += getattr(piece, name)
        totals[piece.index][1] += piece.wall_s
    return sum(_ratio(count, wall) for count, wall in totals.values())


def _ratio(count: float, whole: float) -> float:
    return count / whole if whole else 0.0


def _ray_cpu_s() -> float:
    """CPU seconds so far of this process and of Ray's own ones on this machine. Ray titles the processes that work for
    a run `ray::…`; all others among this process's children are its own."""
    ours = 0.0
    driver = psutil.Process()
    for process in (driver, *driver.children(recursive=True)):
        try:
            title = process.cmdline()
            if title and not title[0].startswith("ray::"):
                times = process.cpu_times()
                ours += times.user + times.system
        except psutil.Error:  # it has just ended
            continue
    return ours
