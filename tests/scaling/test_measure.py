from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from actors.actor import ActorStats
from drqn_dist.config import TrainConfig
from drqn_dist.distributed.remote_replay import LoaderWork, ReplayWork
from drqn_dist.envs.make import env_spec
from drqn_dist.errors import ConfigError, RoleFailedError
from drqn_dist.interfaces import EnvSpec
from drqn_dist.presets import preset
from drqn_dist.scaling import crowding
from drqn_dist.scaling import measure as measuring
from drqn_dist.scaling.busy import busy_cpu_s
from drqn_dist.scaling.crowding import measure_crowding
from drqn_dist.scaling.measure import (
    Window,
    actor_shares,
    learner_shares,
    measure,
    shares,
    tightened,
    variation,
)
from drqn_dist.scaling.points import Point, read_points
from drqn_dist.scaling.settings import point_config, with_settings
from drqn_dist.training.memory import batches_per_draw
from drqn_dist.training.session import Report
from learner.learner import LearnerStats
from replay_server.replay import ReplayStats, make_shard
from tests.runs import maze_config, role_processes, until


def learnt(updates: int, new: int, version_age: float = 0.0, **times: float) -> LearnerStats:
    return LearnerStats(
        updates, new, 0, 0.0, 0.0, 0.0, 0.0, version_age, times.pop("wait_s", 0.0), times.pop("train_s", 0.0), **times
    )


class FakeSession:
    """Answers `work` with what it was given, one after the other."""

    def __init__(self, *work: tuple[list[ReplayWork], list[LoaderWork]]) -> None:
        self._work = list(work)

    def work(self) -> tuple[list[ReplayWork], list[LoaderWork]]:
        return self._work.pop(0)


def replay_stats(sampled: int, inserted: int) -> ReplayStats:
    return ReplayStats(0, 0, 0, 0, 0, inserted, sampled, 0.0, 0, 0, 0, 0, 0, 0.0, 0.0)


def test_a_measurement_has_as_little_slack_as_the_rate_limiter_allows() -> None:
    config = with_settings(preset("pong-cpu"), ("replay.samples_per_insert=1", "actor.fragment_steps=20"))
    spec = EnvSpec((1, 64, 64), "uint8", 6, 4)

    def slack(config: TrainConfig, actors: int, envs: int) -> int:
        return tightened(point_config(config, actors, envs, learner=True), spec).replay.rate_tolerance_steps

    assert slack(config, 2, 16) == 2 * 16 * 20  # steps of all fragments under way
    assert slack(config, 1, 1) == 2 * 8 * 10  # one draw: two batches of 8 windows of 10 steps
    in_two = with_settings(replace(config, actors=2), ("replay.shards=2",))
    assert slack(in_two, 2, 1) == 2 * 2 * 8 * 10  # from two shards, four
    assert slack(with_settings(config, ("replay.samples_per_insert=0.3",)), 1, 1) == 534  # 160 / 0.3
    assert slack(with_settings(config, ("replay.rate_tolerance_steps=999",)), 2, 16) == 999
    for shards in (1, 2, 4):  # no replay refuses it
        sharded = with_settings(replace(config, actors=shards), (f"replay.shards={shards}",))
        measured = tightened(point_config(sharded, shards, 1, learner=True), spec)
        make_shard(measured, 0, batches_per_draw(measured, spec))


def test_what_is_measured_has_that_slack(maze: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def start(config: TrainConfig) -> None:
        started.append(config.replay.rate_tolerance_steps)
        raise RoleFailedError("enough")

    monkeypatch.setattr(measuring, "RaySession", start)
    with pytest.raises(RoleFailedError, match="enough"):
        measure(maze, 2, 4, 1, learner=True, warmup_s=0.0, seconds=1.0, repeat=0)
    assert started == [
        tightened(point_config(maze, 2, 4, learner=True), env_spec(maze.env)).replay.rate_tolerance_steps
    ]
    assert started[0] < point_config(maze, 2, 4, learner=True).rate_tolerance_steps


def test_shares_add_up_to_one_even_where_clocks_disagree() -> None:
    assert shares({"a": 1.0, "b": 2.0}, 4.0) == {"a": 0.25, "b": 0.5, "other": 0.25}
    assert shares({"a": 3.0, "b": 3.0}, 5.0, "idle") == {"a": 0.5, "b": 0.5, "idle": 0.0}


def test_an_actors_time_is_shared_out_by_what_it_did() -> None:
    pieces = [
        ActorStats(env_s=1.0, policy_s=0.5, encode_s=0.25, wall_s=2.0),
        ActorStats(push_s=1.0, build_s=0.5, weights_s=0.25, wall_s=2.0),
    ]
    assert actor_shares(pieces) == {
        "env": 1 / 4,
        "inference": 0.5 / 4,
        "build": 0.5 / 4,
        "encode": 0.25 / 4,
        "push": 1 / 4,
        "weights": 0.25 / 4,
        "other": 0.5 / 4,
    }


def test_publishing_is_counted_apart_from_training() -> None:
    found = learner_shares([learnt(5, 5, wait_s=1.0, train_s=2.0, publish_s=0.5, wall_s=4.0)])
    assert found == {"wait": 1 / 4, "train": 1.5 / 4, "publish": 0.5 / 4, "other": 1 / 4}


def test_the_variation_of_one_operation_is_found_from_pieces_of_many() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(20, 60, 4_000)
    seconds = [float(rng.gamma(1 / 0.5**2, 0.01 * 0.5**2, count).sum()) for count in counts]
    assert variation(seconds, counts.tolist()) == pytest.approx(0.5, rel=0.05)
    assert variation([1.0], [10.0]) == 0.0
    assert variation([1.0, 1.0], [0.0, 10.0]) == 0.0


def test_a_point_needs_to_have_heard_of_every_actor() -> None:
    work = ([ReplayWork(1.0)], [LoaderWork()])
    window = Window(FakeSession(work, work))  # type: ignore[arg-type]
    window.add(Report(actors=[ActorStats(index=0, agent_steps=100, wall_s=1.0)], replay=replay_stats(0, 100)))
    with pytest.raises(ConfigError, match=r"1 of 2 actors reported nothing in .* measure longer"):
        window.point(maze_config(Path("x"), actors=2), 1, False, 4, repeat=0)


def test_a_point_is_made_of_rates_each_over_its_own_time() -> None:
    before = ([ReplayWork(1.0)], [LoaderWork(cpu_s=1.0, batches=5, wait_s=1.0)])
    counts, cpu = {"push": 30, "sample": 10, "priorities": 0}, {"push": 0.3, "sample": 0.2, "priorities": 0.0}
    after = ([ReplayWork(2.0, 20, counts, cpu)], [LoaderWork(3.0, 15, 2.0, 0.5, 10_000, 20_000)])
    window = Window(FakeSession(before, after))  # type: ignore[arg-type]
    first = ActorStats(index=0, agent_steps=100, fragments=5, fragment_bytes=50, wall_s=2.0, cpu_s=1.0, told_s=2.0)
    second = ActorStats(index=1, agent_steps=30, fragments=1, weight_version=8, wall_s=1.0, cpu_s=0.5, told_s=2.1)
    window.add(
        Report(
            actors=[replace(first, weight_version=4), replace(first, agent_steps=200, weight_version=6), second],
            learner=[
                learnt(10, 10, 2.0, wall_s=1.0, cpu_s=0.5, told_s=1.0),
                learnt(40, 30, 6.0, wall_s=1.0, cpu_s=1.0, told_s=2.0),
            ],
            replay=replay_stats(1_000, 500),
        )
    )
    window.add(Report(learner=[learnt(40, 0, math.nan, wall_s=2.0)], replay=replay_stats(1_800, 600)))
    window.began -= 10.0
    config = maze_config(Path("x"), actors=2)
    point = window.point(config, 1, True, 4, repeat=3)
    # Actor 0 took 300 steps in 4 s, actor 1 took 30 in 1 s.
    assert point.agent_steps_per_s == 300 / 4 + 30
    assert point.frames_per_s == 4 * point.agent_steps_per_s
    assert point.updates_per_s == 40 / 4
    assert point.sample_age == (10 * 2.0 + 30 * 6.0) / 40
    # The learner makes 30 updates a second, and the second actor told its version a tenth of a second later.
    assert point.policy_lag == pytest.approx(((40 - 4) + (40 - 6) + (43 - 8)) / 3)
    assert point.samples_per_insert == 800 / 100
    assert point.cores["actors"] == 2 / 4 + 0.5
    assert point.cores["learner"] == 1.5 / 4
    assert point.cores["replay"] == pytest.approx(1 / 10, rel=0.01)
    assert point.cores["loaders"] == pytest.approx(2 / 10, rel=0.01)
    assert point.bytes_per_s["samples"] == pytest.approx(1_000, rel=0.01)
    assert point.per_s["push"] == pytest.approx(3, rel=0.01)
    assert point.per_s["batches"] == pytest.approx(1, rel=0.01)
    assert point.per_s["calls"] == pytest.approx(2, rel=0.01)
    assert point.replay_own_cpu_s == {"push": pytest.approx(0.01), "sample": pytest.approx(0.02), "priorities": 0.0}
    assert point.loader_time["wait"] == pytest.approx(0.1, rel=0.01)
    assert (point.key, point.repeat) == ((2, 2, 1, True), 3)


@pytest.fixture
def maze(tmp_path: Path) -> TrainConfig:
    return maze_config(tmp_path, mode="ray", total_steps=10**12)


def small(config: TrainConfig, actors: int, learner: bool, **changes: Any) -> Point:
    arguments: dict[str, Any] = {"nodes": 1, "warmup_s": 0.0, "seconds": 3.0, "repeat": 0} | changes
    return measure(config, actors, 2, learner=learner, **arguments)


@pytest.mark.ray
def test_a_run_with_a_learner_is_measured_whole(local_ray: None, maze: TrainConfig) -> None:
    point = small(maze, 2, learner=True)
    # Rough bounds: a few seconds on a busy machine hold few updates.
    assert point.samples_per_insert is None or 2 < point.samples_per_insert < 32
    assert 0 < point.updates_per_s < point.agent_steps_per_s
    for table in (point.actor_time, point.loader_time, point.learner_time):
        assert sum(table.values()) == pytest.approx(1)
        assert min(table.values()) >= 0
    assert all(point.bytes_per_s[link] > 0 for link in ("pushes", "samples", "batches", "weights"))
    assert all(cost > 0 for cost in point.replay_own_cpu_s.values())
    assert all(point.cores[role] > 0 for role in ("actors", "replay", "loaders", "learner", "ray", "machine"))
    assert point.per_s["push"] > 0
    until(lambda: not role_processes(), "the run's processes to end")


@pytest.mark.ray
def test_acting_alone_neither_trains_nor_waits(local_ray: None, maze: TrainConfig) -> None:
    point = small(maze, 1, learner=False)
    assert point.agent_steps_per_s > 0
    assert (point.updates_per_s, point.policy_lag, point.sample_age, point.samples_per_insert) == (
        0.0,
        None,
        None,
        None,
    )
    assert point.per_s["sample"] == point.bytes_per_s["batches"] == 0.0
    assert point.actor_time["push"] < 0.5


@pytest.mark.ray
def test_a_measurement_that_was_disturbed_is_thrown_away(
    local_ray: None, maze: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drqn_dist.distributed.supervisor import RaySession

    whole = RaySession.advance

    def with_an_event(self: RaySession, seconds: float) -> Report:
        report = whole(self, seconds)
        return replace(report, events=["actor 0 died"])

    monkeypatch.setattr(RaySession, "advance", with_an_event)
    with pytest.raises(RoleFailedError, match="disturbed: actor 0 died; start the sweep again"):
        small(maze, 1, learner=False)
    until(lambda: not role_processes(), "the run's processes to end")


@pytest.mark.slow
@pytest.mark.ray
def test_the_command_measures_over_several_nodes_and_writes_its_files(tmp_path: Path) -> None:
    program = str(Path(sys.executable).with_name("drqn-dist"))  # apart from the Ray of other tests
    short = ["--seconds", "1", "--warmup-s", "0.2", "--repeats", "1", "--actors", "1,2", "--nodes", "2", "--json"]
    note = tmp_path / "machine" / "ray" / "ray_current_cluster"
    note.parent.mkdir(parents=True)
    note.write_text("192.0.2.1:6379")
    out = tmp_path / "out"
    done = subprocess.run(
        [program, "scale", "--preset", "gridworld", *short, "--out", str(out)],
        env=os.environ | {"RAY_TMPDIR": str(tmp_path / "machine")},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert note.read_text() == "192.0.2.1:6379", "the machine's own cluster is another"
    assert "bottleneck" in json.loads(done.stdout)["bottleneck"]
    points = read_points(out / "points.jsonl")
    assert sorted((point.actors, point.nodes) for point in points) == [(1, 2), (2, 2)]
    assert all(point.updates_per_s > 0 for point in points)
    assert {path.name for path in out.iterdir()} == {
        "points.jsonl",
        "sweep.json",
        "scale.csv",
        "scale.json",
        "scale.png",
        "profile.json",
    }


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("nodes", ["1", "2"])
def test_a_sweep_that_is_terminated_takes_everything_along(nodes: str, tmp_path: Path) -> None:
    program = str(Path(sys.executable).with_name("drqn-dist"))
    line = [program, "scale", "--preset", "gridworld", "--seconds", "1000", "--nodes", nodes, "--out", str(tmp_path)]
    sweep = psutil.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def titles() -> list[str]:
        words = []
        for process in sweep.children(recursive=True):
            with suppress(psutil.Error):
                words += process.cmdline()[:1]
        return words

    try:
        until(lambda: any(title.startswith("ray::ActorRole") for title in titles()), "an actor", 180)
        started = sweep.children(recursive=True)
        sweep.terminate()
        assert sweep.wait(60) == 130
        until(lambda: not any(process.is_running() for process in started), "all its processes to end")
    finally:
        for process in (*sweep.children(recursive=True), sweep) if sweep.is_running() else ():
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("learner", [False, True])
def test_crowding_is_measured_with_as_many_processes_as_asked_for(maze: TrainConfig, learner: bool) -> None:
    assert measure_crowding(maze, 1, learner) == 0.0
    tight = replace(maze, replay=replace(maze.replay, rate_tolerance_steps=1))  # as only many processes may have it
    found = measure_crowding(tight, 2, learner, seconds=0.3, repeats=1)
    assert 0.0 <= found < 5.0


def test_work_that_costs_more_in_company_is_crowded(maze: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool:
        """Runs nothing: a step costs 1, beside a neighbour 1.2."""

        def __init__(self, *_: object) -> None:
            self._calls = 0

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing to end."""

        def submit(self, play: object, config: object, learner: object, seconds: float) -> Future[float | None]:
            together, self._calls = self._calls // 2 % 2, self._calls + 1
            done: Future[float | None] = Future()
            done.set_result((1.0, 1.2)[together] if seconds else None)
            return done

    monkeypatch.setattr(crowding, "ProcessPoolExecutor", Pool)
    assert measure_crowding(maze, 2, learner=False) == pytest.approx(0.2)


def test_busy_cores_are_those_that_this_process_may_use() -> None:
    start, before, spent = time.perf_counter(), busy_cpu_s(), time.process_time()
    while time.process_time() < spent + 0.5:
        pass
    busy, elapsed = busy_cpu_s() - before, time.perf_counter() - start
    assert 0.4 < busy < (os.cpu_count() or 1) * elapsed + 0.1  # the kernel counts in hundredths of a second
