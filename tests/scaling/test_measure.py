from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.actor import ActorStats
from drqn_dist.config import TrainConfig
from drqn_dist.errors import ConfigError, RoleFailedError
from drqn_dist.scaling import measure as measuring
from drqn_dist.scaling.measure import busy_cpu_s, measure, point_of, shares, tightened
from drqn_dist.scaling.points import Point, read_sweep
from drqn_dist.scaling.predict import Costs
from drqn_dist.scaling.settings import ScaleArgs, base_config, point_config
from drqn_dist.training.session import Report
from learner.learner import LearnerStats
from replay_server.make import make_replay
from replay_server.stats import ReplayStats
from tests.runs import maze_config, role_processes, until


def pong(*settings: str) -> TrainConfig:
    return base_config(ScaleArgs(out=Path("x"), set=settings))


def learnt(updates: int, new: int, td_loss: float = 0.0, **times: float) -> LearnerStats:
    return LearnerStats(
        updates, new, 0, td_loss, 0.0, 0.0, 0.0, 0.0, times.pop("wait_s", 0.0), times.pop("train_s", 0.0), **times
    )


def replay_stats(sampled: int, inserted: int) -> ReplayStats:
    return ReplayStats(0, 0, 0, 0, inserted, sampled, 0, 0, 0, 0, 0)


def test_a_measurement_has_as_little_slack_as_the_rate_limiter_allows() -> None:
    config = pong("replay.samples-per-insert=1")

    def slack(config: TrainConfig, actors: int, envs: int) -> int:
        return tightened(point_config(config, actors, envs, learner=True)).replay.rate_tolerance_steps

    assert slack(config, 2, 16) == 2 * 16 * 20  # steps of all fragments under way
    assert slack(config, 1, 1) == 2 * 32 * 10  # one draw: two batches of 32 windows of 10 steps
    in_two = pong("replay.samples-per-insert=1", "actors=2", "replay.shards=2")
    assert slack(in_two, 2, 1) == 2 * 2 * 32 * 10  # from two shards, four
    assert slack(pong("replay.samples-per-insert=0.3"), 1, 1) == 2134  # 640 / 0.3
    assert slack(pong("replay.rate-tolerance-steps=999"), 2, 16) == 999
    for shards in (1, 2, 4):  # no replay refuses it
        sharded = pong("replay.samples-per-insert=1", f"actors={shards}", f"replay.shards={shards}")
        measured = tightened(point_config(sharded, shards, 1, learner=True))
        make_replay(measured, 0)


def test_what_is_measured_has_that_slack(maze: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def start(config: TrainConfig) -> None:
        started.append(config.replay.rate_tolerance_steps)
        raise RoleFailedError("enough")

    monkeypatch.setattr(measuring, "RaySession", start)
    with pytest.raises(RoleFailedError, match="enough"):
        measure(maze, 2, 4, learner=True, warmup_s=0.0, seconds=1.0, repeat=0)
    assert started == [tightened(point_config(maze, 2, 4, learner=True)).replay.rate_tolerance_steps]
    assert started[0] < point_config(maze, 2, 4, learner=True).rate_tolerance_steps


def test_an_actors_time_is_shared_out_by_what_it_did() -> None:
    pieces = [
        ActorStats(env_s=1.0, policy_s=0.5, encode_s=0.25, wall_s=2.0),
        ActorStats(push_s=1.0, build_s=0.5, weights_s=0.25, wall_s=2.0),
    ]
    assert shares(pieces, ("env", "policy", "build", "encode", "push", "weights")) == {
        "env": 1 / 4,
        "policy": 0.5 / 4,
        "build": 0.5 / 4,
        "encode": 0.25 / 4,
        "push": 1 / 4,
        "weights": 0.25 / 4,
        "other": 0.5 / 4,
    }


def test_shares_add_up_to_one_even_where_clocks_disagree() -> None:
    found = shares([learnt(5, 5, wait_s=3.0, train_s=3.0, wall_s=5.0)], ("wait", "train"))
    assert found == {"wait": 0.5, "train": 0.5, "other": 0.0}


CORES = {"replay": 0.1, "ray": 0.1, "machine": 1.5}


def test_a_point_needs_to_have_heard_of_every_actor() -> None:
    report = Report(actors=[ActorStats(index=0, agent_steps=100, wall_s=1.0)], replay=replay_stats(0, 100))
    with pytest.raises(ConfigError, match=r"1 of 2 actors reported nothing in 10\.0 s; measure longer"):
        point_of([report], CORES, 10.0, maze_config(Path("x"), actors=2), learner=False, repeat=0)


def test_a_point_is_made_of_rates_each_over_its_own_time() -> None:
    first = ActorStats(index=0, agent_steps=100, fragments=5, wall_s=2.0, cpu_s=1.0, told_s=2.0)
    second = ActorStats(index=1, agent_steps=30, fragments=1, weight_version=8, wall_s=1.0, cpu_s=0.5, told_s=2.1)
    reports = [
        Report(
            actors=[replace(first, weight_version=4), replace(first, agent_steps=200, weight_version=6), second],
            learner=[
                learnt(10, 10, wall_s=1.0, cpu_s=0.5, told_s=1.0),
                learnt(40, 30, wall_s=1.0, cpu_s=1.0, told_s=2.0),
            ],
            replay=replay_stats(1_000, 500),
        ),
        Report(learner=[learnt(40, 0, math.nan, wall_s=2.0)], replay=replay_stats(1_800, 600)),
    ]
    config = maze_config(Path("x"), actors=2)
    point = point_of(reports, CORES, 10.0, config, learner=True, repeat=3)
    # Actor 0 took 300 steps in 4 s, actor 1 took 30 in 1 s.
    assert point.agent_steps_per_s == 300 / 4 + 30
    assert point.fragments_per_s == 10 / 4 + 1
    assert point.updates_per_s == 40 / 4
    # The learner makes 30 updates a second, and the second actor reported its version a tenth of a second later.
    assert point.policy_lag == pytest.approx(((40 - 4) + (40 - 6) + (43 - 8)) / 3)
    assert point.samples_per_insert == 800 / 100
    assert point.cores == CORES | {"actors": 2 / 4 + 0.5, "learner": 1.5 / 4}
    assert (point.key, point.repeat, point.seconds) == ((2, 2), 3, 10.0)
    acting = point_of(reports, CORES, 10.0, config, learner=False, repeat=3)
    assert (acting.samples_per_insert, acting.policy_lag) == (None, None)


@pytest.fixture
def maze(tmp_path: Path) -> TrainConfig:
    return maze_config(tmp_path, mode="ray", total_steps=10**12)


def small(config: TrainConfig, actors: int, learner: bool, **changes: Any) -> Point:
    arguments: dict[str, Any] = {"warmup_s": 0.0, "seconds": 3.0, "repeat": 0} | changes
    return measure(config, actors, 2, learner=learner, **arguments)


@pytest.mark.ray
def test_a_run_with_a_learner_is_measured_whole(local_ray: None, maze: TrainConfig) -> None:
    point = small(maze, 2, learner=True)
    # Rough bounds: a few seconds on a busy machine hold few updates.
    assert point.samples_per_insert is None or 2 < point.samples_per_insert < 32
    assert 0 < point.updates_per_s < point.agent_steps_per_s
    for table in (point.actor_time, point.learner_time):
        assert sum(table.values()) == pytest.approx(1)
        assert min(table.values()) >= 0
    assert all(point.cores[role] > 0 for role in ("actors", "replay", "learner", "ray", "machine"))
    assert point.fragments_per_s > 0
    until(lambda: not role_processes(), "the run's processes to end")


@pytest.mark.ray
def test_acting_alone_neither_trains_nor_waits(local_ray: None, maze: TrainConfig) -> None:
    point = small(maze, 1, learner=False)
    assert point.agent_steps_per_s > 0
    assert (point.updates_per_s, point.policy_lag, point.samples_per_insert) == (0.0, None, None)
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
def test_the_command_measures_and_writes_its_files(tmp_path: Path) -> None:
    program = str(Path(sys.executable).with_name("drqn-dist"))  # apart from the Ray of other tests
    short = ["--seconds", "8", "--warmup-s", "0.2", "--repeats", "1", "--actors", "1,2", "--json"]
    out = tmp_path / "out"
    line = [program, "scale", "--preset", "gridworld", *short, "--out", str(out)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert "bottleneck" in result["bottleneck"]
    assert [row["actors"] for row in result["points"]] == [1, 2]
    assert all(row["updates_per_s"] > 0 for row in result["points"])
    names = {"points.jsonl", "sweep.json", "scale.csv", "scale.json", "scale.png"}
    assert {path.name for path in out.iterdir()} == names
    assert Costs.of(*read_sweep(out)).update_s > 0


@pytest.mark.slow
@pytest.mark.ray
def test_a_sweep_that_is_terminated_takes_everything_along(tmp_path: Path) -> None:
    program = str(Path(sys.executable).with_name("drqn-dist"))
    line = [program, "scale", "--preset", "gridworld", "--seconds", "1000", "--out", str(tmp_path)]
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


def test_busy_cores_are_those_that_this_process_may_use() -> None:
    start, before, spent = time.perf_counter(), busy_cpu_s(), time.process_time()
    while time.process_time() < spent + 0.5:
        pass
    busy, elapsed = busy_cpu_s() - before, time.perf_counter() - start
    assert 0.4 < busy < (os.cpu_count() or 1) * elapsed + 0.1  # the kernel counts in hundredths of a second
