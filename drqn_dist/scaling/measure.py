"""Measures one point: a run of so many actors, its steady state."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import psutil

from actors.actor import ActorStats
from drqn_dist.config import TrainConfig
from drqn_dist.distributed.remote_replay import LoaderWork, ReplayWork
from drqn_dist.distributed.supervisor import START_S, RaySession
from drqn_dist.envs.make import env_spec
from drqn_dist.errors import ConfigError, RoleFailedError
from drqn_dist.interfaces import EnvSpec
from drqn_dist.scaling.busy import busy_cpu_s
from drqn_dist.scaling.nodes import on_nodes
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


def measure(
    config: TrainConfig,
    actors: int,
    envs_per_actor: int,
    nodes: int,
    learner: bool,
    warmup_s: float,
    seconds: float,
    repeat: int,
) -> Point:
    """Starts a run, waits until every role works and `warmup_s` longer, and measures for about `seconds`.

    Raises:
        ConfigError: the configuration cannot run here.
        RoleFailedError: a process failed; what was measured until then is not worth keeping.
    """
    spec = env_spec(config.env)
    config = tightened(point_config(config, actors, envs_per_actor, learner), spec)
    check_point(config, learner)
    with on_nodes(config, spec, nodes) as config, closing(RaySession(config)) as session:
        _start_up(session, actors, learner)
        deadline = time.monotonic() + warmup_s
        while (left := deadline - time.monotonic()) > 0:
            _advance(session, left)
        window = Window(session)
        while (left := window.began + seconds - time.monotonic()) > 0:
            window.add(_advance(session, min(left, _REPORT_S)))
        return window.point(config, nodes, learner, spec.frames_per_step, repeat)


def tightened(config: TrainConfig, spec: EnvSpec) -> TrainConfig:
    """With no more slack in the rate limiter than what comes and goes at once needs, unless a slack is asked for: in a
    run's automatic one, minutes can pass in which both sides are as fast as if there were no ratio to hold."""
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
    check_memory(config if learner else _as_bytes_allow(config), env_spec(config.env))


def _as_bytes_allow(config: TrainConfig) -> TrainConfig:
    """With a replay of as many steps as its bytes can hold; acting only, its steps are bounded far beyond that."""
    fragments = config.replay.capacity_bytes // FRAGMENT_OVERHEAD_BYTES
    replay = replace(config.replay, min_steps=1, capacity_steps=fragments * config.window.fragment)
    return replace(config, replay=replay)


def _start_up(session: RaySession, actors: int, learner: bool) -> None:
    """Returns once every actor has stepped and, if there is to be one, the learner has trained."""
    deadline = time.monotonic() + START_S
    acting: set[int] = set()
    trains = not learner
    while len(acting) < actors or not trains:
        if time.monotonic() > deadline:
            what = f"{actors - len(acting)} of {actors} actors" if len(acting) < actors else "the learner"
            raise RoleFailedError(f"{what} did nothing for {START_S:.0f} s; try fewer actors or a lower min_steps")
        report = _advance(session, _REPORT_S)
        acting |= {piece.index for piece in report.actors if piece.agent_steps}
        trains |= any(piece.new_updates for piece in report.learner)


def _advance(session: RaySession, seconds: float) -> Report:
    report = session.advance(seconds)
    if report.events:
        raise RoleFailedError(f"the measurement was disturbed: {report.events[0]}; start the sweep again to go on")
    return report


class Window:
    """What the roles report from its making on.

    Actors and learner report pieces of about a second, which carry their own length; the others are asked at both
    ends.
    """

    def __init__(self, session: RaySession) -> None:
        self._session = session
        self._actors: list[ActorStats] = []
        self._learner: list[LearnerStats] = []
        self._lag, self._lags = PolicyLag(), list[float]()
        self._counters: list[tuple[int, int]] = []
        self._work = session.work()
        self._cpu = _ray_and_machine_cpu_s()
        self.began = time.monotonic()
        """Monotonic seconds."""

    def add(self, report: Report) -> None:
        self._actors += report.actors
        self._learner += report.learner
        if (lag := self._lag.of(report)) is not None:
            self._lags.append(lag)
        if report.replay is not None:
            self._counters.append((report.replay.sampled_steps, report.replay.inserted_steps))

    def point(self, config: TrainConfig, nodes: int, learner: bool, frames_per_step: int, repeat: int) -> Point:
        elapsed = time.monotonic() - self.began
        ray_s, machine_s = (b - a for a, b in zip(self._cpu, _ray_and_machine_cpu_s(), strict=True))
        start = time.perf_counter()
        work = self._session.work()
        call_s = time.perf_counter() - start
        replay = _replay_difference(self._work[0], work[0])
        loader = _loader_difference(self._work[1], work[1])
        silent = set(range(config.num_actors)) - {piece.index for piece in self._actors}
        if silent:
            raise ConfigError(
                f"{len(silent)} of {config.num_actors} actors reported nothing in {elapsed:.1f} s; measure longer "
                "(--seconds, into another --out)"
            )
        steps_per_s = _per_actor(self._actors, "agent_steps")
        trained = [piece for piece in self._learner if piece.new_updates]
        updates = sum(piece.new_updates for piece in trained)
        learner_wall = sum(piece.wall_s for piece in self._learner)
        ages = [piece.sample_age * piece.new_updates for piece in trained]
        return Point(
            actors=config.num_actors,
            envs_per_actor=config.actor.envs_per_actor,
            nodes=nodes,
            learner=learner,
            repeat=repeat,
            seconds=elapsed,
            agent_steps_per_s=steps_per_s,
            frames_per_s=steps_per_s * frames_per_step,
            updates_per_s=_ratio(updates, learner_wall),
            samples_per_insert=self._samples_per_insert() if learner else None,
            sample_age=sum(ages) / updates if updates else None,
            policy_lag=float(np.mean(self._lags)) if self._lags and learner else None,
            cores={
                "actors": _per_actor(self._actors, "cpu_s"),
                "replay": replay.cpu_s / elapsed,
                "loaders": loader.cpu_s / elapsed,
                "learner": _ratio(sum(piece.cpu_s for piece in self._learner), learner_wall),
                "ray": ray_s / elapsed,
                "machine": machine_s / elapsed,
            },
            bytes_per_s={
                "pushes": _per_actor(self._actors, "fragment_bytes"),
                "samples": loader.sample_bytes / elapsed,
                "batches": loader.batch_bytes / elapsed,
                "weights": _per_actor(self._actors, "weight_bytes"),
            },
            actor_time=actor_shares(self._actors),
            loader_time=shares(
                {"wait": loader.wait_s, "decode": loader.decode_s}, elapsed * len(self._work[1]), rest="idle"
            ),
            learner_time=learner_shares(self._learner),
            transfer=_ratio(sum(piece.transfer_s for piece in self._learner), learner_wall),
            per_s={
                "fragments": _per_actor(self._actors, "fragments"),
                "batches": loader.batches / elapsed,
                "calls": replay.calls / elapsed,
                **{kind: count / elapsed for kind, count in replay.operations.items()},
            },
            replay_own_cpu_s={kind: _ratio(cpu, replay.operations[kind]) for kind, cpu in replay.own_cpu_s.items()},
            cv={
                "actor": variation(
                    [piece.wall_s - piece.push_s for piece in self._actors],
                    [piece.agent_steps / config.actor.envs_per_actor for piece in self._actors],
                ),
                "learner": variation([piece.train_s for piece in trained], [piece.new_updates for piece in trained]),
            },
            call_s=call_s,
        )

    def _samples_per_insert(self) -> float | None:
        if len(self._counters) < 2 or self._counters[-1][1] == self._counters[0][1]:
            return None
        (sampled, inserted), (sampled_then, inserted_then) = self._counters[-1], self._counters[0]
        return (sampled - sampled_then) / (inserted - inserted_then)


def actor_shares(pieces: Sequence[ActorStats]) -> dict[str, float]:
    """Where the actors' time went."""
    spent = {name: sum(getattr(piece, attribute) for piece in pieces) for name, attribute in _ACTOR_PARTS.items()}
    return shares(spent, sum(piece.wall_s for piece in pieces))


def learner_shares(pieces: Sequence[LearnerStats]) -> dict[str, float]:
    """Where the learner's time went."""
    publish = sum(piece.publish_s for piece in pieces)
    train = sum(max(0.0, piece.train_s) for piece in pieces)
    spent = {"wait": sum(piece.wait_s for piece in pieces), "train": max(0.0, train - publish), "publish": publish}
    return shares(spent, sum(piece.wall_s for piece in pieces))


def shares(spent: dict[str, float], whole: float, rest: str = "other") -> dict[str, float]:
    """Seconds as shares of the whole, with the rest; they add up to 1 even where clocks disagree a little."""
    whole = max(whole, sum(spent.values()), 1e-12)
    return {name: seconds / whole for name, seconds in spent.items()} | {
        rest: max(0.0, 1 - sum(spent.values()) / whole)
    }


def variation(seconds: Sequence[float], operations: Sequence[float]) -> float:
    """Standard deviation over mean of one operation, from the lengths of pieces of many independent ones.

    With k operations of mean m and deviation s, a piece's mean deviates by s / √k.
    """
    pairs = [(s / k, k) for s, k in zip(seconds, operations, strict=True) if k > 0]
    if len(pairs) < 2:
        return 0.0
    means, weights = np.array(pairs).T
    mean = float(np.average(means, weights=weights))
    per_operation = float(np.sum(weights * (means - mean) ** 2) / (len(pairs) - 1))
    return math.sqrt(per_operation) / mean if mean > 0 else 0.0


def _per_actor(pieces: Sequence[ActorStats], name: str) -> float:
    """A count per second, of all actors together; each one's is taken over its own pieces."""
    totals: defaultdict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for piece in pieces:
        totals[piece.index][0] += getattr(piece, name)
        totals[piece.index][1] += piece.wall_s
    return sum(_ratio(count, wall) for count, wall in totals.values())


def _ratio(count: float, whole: float) -> float:
    return count / whole if whole else 0.0


def _replay_difference(before: Sequence[ReplayWork], after: Sequence[ReplayWork]) -> ReplayWork:
    """What all shards together did in between."""
    total = ReplayWork(sum(b.cpu_s - a.cpu_s for a, b in zip(before, after, strict=True)))
    for a, b in zip(before, after, strict=True):
        total.calls += b.calls - a.calls
        for kind in total.operations:
            total.operations[kind] += b.operations[kind] - a.operations[kind]
            total.own_cpu_s[kind] += b.own_cpu_s[kind] - a.own_cpu_s[kind]
    return total


def _loader_difference(before: Sequence[LoaderWork], after: Sequence[LoaderWork]) -> LoaderWork:
    names = list(vars(LoaderWork()))
    return LoaderWork(
        **{n: sum(getattr(b, n) - getattr(a, n) for a, b in zip(before, after, strict=True)) for n in names}
    )


def _ray_and_machine_cpu_s() -> tuple[float, float]:
    """CPU seconds so far of this process and Ray's own ones on this machine, and of everything that runs on it.

    Ray titles the processes that work for a run `ray::…`; all others of ours are its own.
    """
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
    return ours, busy_cpu_s()
