"""Measures one point: a run of so many actors, its steady state."""

import math
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace

import numpy as np
import psutil

from actors.actor import ActorStats
from drqn_dist.config import TrainConfig
from drqn_dist.distributed.role import START_S
from drqn_dist.distributed.supervisor import RaySession
from drqn_dist.envs.make import env_spec
from drqn_dist.errors import ConfigError, RoleFailedError
from drqn_dist.scaling.points import Point
from drqn_dist.scaling.settings import point_config
from drqn_dist.training.memory import FRAGMENT_OVERHEAD_BYTES, check_memory
from drqn_dist.training.monitor import PolicyLag
from drqn_dist.training.session import Report
from learner.learner import LearnerStats

_REPORT_S = 1.0
_ACTOR_PARTS = ("env", "policy", "build", "encode", "push", "weights")
_LEARNER_PARTS = ("wait", "train")


def measure(
    config: TrainConfig, actors: int, envs_per_actor: int, learner: bool, warmup_s: float, seconds: float, repeat: int
) -> Point:
    """Starts a run, waits until every role works and `warmup_s` longer, and measures for about `seconds`.

    Raises:
        ConfigError: the configuration cannot run here.
        RoleFailedError: a process failed, so the measurement is void.
    """
    config = tightened(point_config(config, actors, envs_per_actor, learner))
    check_point(config, learner)
    with closing(RaySession(config)) as session:
        _start_up(session, actors, learner)
        _reports(session, warmup_s)
        before, began = _cpu_s(session), time.monotonic()
        reports = _reports(session, seconds)
        elapsed = time.monotonic() - began
        cores = {name: (cpu_s - before[name]) / elapsed for name, cpu_s in _cpu_s(session).items()}
    return point_of(reports, cores, elapsed, config, learner, repeat)


def tightened(config: TrainConfig) -> TrainConfig:
    """With the least slack in the rate limiter that still lets each side do its work in one piece, unless a slack is
    set. With a run's automatic slack, minutes can pass before the replay ratio holds anybody up."""
    learning, replay = config.learner, config.replay
    drawn = config.batches_per_draw * learning.batch_windows * learning.unroll_steps
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


def point_of(
    reports: Sequence[Report], cores: dict[str, float], seconds: float, config: TrainConfig, learner: bool, repeat: int
) -> Point:
    """Actors and learner report pieces of about a second, each with its own length; rates are taken over those lengths.

    Args:
        cores: CPU seconds per second of everything but actors and learner, which report their own.

    Raises:
        ConfigError: an actor has reported nothing.
    """
    acting, learning = ([p for r in reports for p in r.actors], [p for r in reports for p in r.learner])
    if silent := set(range(config.num_actors)) - {piece.index for piece in acting}:
        raise ConfigError(
            f"{len(silent)} of {config.num_actors} actors reported nothing in {seconds:.1f} s; measure longer "
            "(--seconds, into another --out)"
        )
    tracker = PolicyLag()
    lags = [lag for report in reports if (lag := tracker.of(report)) is not None]
    replay = [report.replay for report in reports if report.replay is not None]
    inserted = replay[-1].inserted_steps - replay[0].inserted_steps if replay else 0
    sampled = replay[-1].sampled_steps - replay[0].sampled_steps if replay else 0
    learner_s = sum(piece.wall_s for piece in learning) or 1.0  # nothing was done in no time
    trained = {"learner": sum(piece.cpu_s for piece in learning) / learner_s}
    return Point(
        actors=config.num_actors,
        envs_per_actor=config.actor.envs_per_actor,
        learner=learner,
        repeat=repeat,
        seconds=seconds,
        agent_steps_per_s=_per_actor(acting, "agent_steps"),
        fragments_per_s=_per_actor(acting, "fragments"),
        updates_per_s=sum(piece.new_updates for piece in learning) / learner_s,
        samples_per_insert=sampled / inserted if learner and inserted else None,
        policy_lag=float(np.mean(lags)) if learner and lags else None,
        cores={"actors": _per_actor(acting, "cpu_s")} | trained | cores,
        actor_time=shares(acting, _ACTOR_PARTS),
        learner_time=shares(learning, _LEARNER_PARTS),
    )


def shares(pieces: Sequence[ActorStats] | Sequence[LearnerStats], parts: Sequence[str]) -> dict[str, float]:
    """What each part (in the field `<part>_s`) and the rest take of the pieces' wall-clock time; they add up to 1 even
    where clocks disagree."""
    spent = {part: sum(max(0.0, getattr(piece, f"{part}_s")) for piece in pieces) for part in parts}
    whole = max(sum(piece.wall_s for piece in pieces), sum(spent.values()), 1e-12)
    found = {part: seconds / whole for part, seconds in spent.items()}
    return found | {"other": max(0.0, 1 - sum(found.values()))}


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
    return sum(count / wall for count, wall in totals.values() if wall)


def _cpu_s(session: RaySession) -> dict[str, float]:
    """CPU seconds so far, but for actors and learner, which report their own. Ray titles the processes that work for a
    run `ray::…`; all others among this process's children are its own."""
    found = {"replay": session.replay_cpu_s(), "ray": 0.0, "machine": busy_cpu_s()}
    driver = psutil.Process()
    for process in (driver, *driver.children(recursive=True)):
        with suppress(psutil.Error):  # it has just ended
            title, times = process.cmdline(), process.cpu_times()
            found["ray"] += times.user + times.system if title and not title[0].startswith("ray::") else 0.0
    return found
