from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drqn_dist.errors import ConfigError, RunFolderError
from drqn_dist.presets import preset
from drqn_dist.scaling.points import Point
from drqn_dist.scaling.profile import Profile, ShardPrice, _runnable, make_profile, read_profile, write_profile
from tests.scaling.made_up import PARTS, point

PRICE = ShardPrice(push_call_s=0.0003, push_s=0.0001, sample_s=0.0004, priorities_s=0.0002)


def made(points: list[Point], neighbours: float = 0.0) -> Profile:
    return make_profile(preset("pong-cpu"), points, 2, neighbours, PRICE, 2, 1_000, {"cpu": "x"})


def acting(envs: int, **changes: Any) -> Point:
    """An actor whose batched step costs 4 ms and 1 ms per environment, and which has its core to itself."""
    speed = envs / (0.004 + 0.001 * envs)
    calls = speed / 20
    return point(
        1,
        envs,
        agent_steps_per_s=speed,
        cores={"actors": 1.0, "replay": 0.05, "loaders": 0, "learner": 0, "ray": 0.1, "machine": 1.2},
        per_s={"fragments": calls, "batches": 0.0, "calls": 5.0, "push": calls, "sample": 0.0, "priorities": 0.0},
        actor_time=dict.fromkeys(PARTS, 0.0) | {"env": 1.0, "other": 0.0},
        bytes_per_s={"pushes": 3_000 * calls, "samples": 0.0, "batches": 0.0, "weights": 0.0},
        **changes,
    )


def test_costs_of_acting_are_recovered() -> None:
    found = made([acting(2), acting(64)])
    assert found.costs.actor_fixed_s == pytest.approx(0.004)
    assert found.costs.actor_per_env_s == pytest.approx(0.001)
    assert found.shard == PRICE
    # 0.1 are Ray's, and of the shard's 0.05 a part is priced: fragments of 20 steps, which travel in pushes of a period
    # of ten, one of 2 environments alone, 32 of 64 together.
    shard = [(2 / 0.006 / 20) * (0.0001 + 0.0003), (64 / 0.068 / 20) * (0.0001 + 0.0003 / 32)]
    assert found.costs.other_cores == pytest.approx(0.1 + sum(max(0.0, 0.05 - s) for s in shard) / 2)
    assert (found.sizes.fragment_steps, found.sizes.fragment_bytes) == (pytest.approx(20), pytest.approx(3_000))
    assert not found.trains


def test_with_one_number_of_environments_all_is_per_environment() -> None:
    found = made([acting(16)])
    assert (found.costs.actor_fixed_s, found.costs.actor_per_env_s) == (0.0, pytest.approx(0.020 / 16))


def test_costs_of_training_are_recovered() -> None:
    found = made([point(learner=True)])
    assert found.costs.learner_s == pytest.approx(0.9 / 25)
    # Ray's 0.05 and the shard's, but for 50 fragments alike, 8 in a push, 25 batches and 12.5 calls with priorities.
    shard = 50 * (0.0001 + 0.0003 / 8) + 25 * 0.0004 + 12.5 * 0.0002
    assert found.costs.other_cores == pytest.approx(0.05 + 0.05 - shard)
    assert made([point()]).costs.other_cores > 0.05 + 0.9 + 0.1, "a learner and a loader that only wait"
    assert found.costs.loader_s == pytest.approx(0.1 / 25)
    assert found.sizes.batch_bytes == pytest.approx(1e7 / 25)
    assert found.trains


def test_costs_are_those_of_a_core_whose_neighbours_are_idle() -> None:
    busy = {"actors": 1.0, "replay": 0.0, "loaders": 0.0, "learner": 0.0, "ray": 0.0, "machine": 2.0}
    crowded = made([point(cores=busy)], neighbours=0.25)
    assert crowded.costs.actor_per_env_s == pytest.approx(made([point(cores=busy)]).costs.actor_per_env_s / 1.25)


def several(actors: int, dearer: float, **changes: Any) -> Point:
    """Actors that keep two cores busy, with batched steps that cost so much more than those of `acting`."""
    speed = 2.0 * 16 / (0.020 * (1 + dearer))
    cores = {"actors": 2.0, "replay": 0.0, "loaders": 0.0, "learner": 0.0, "ray": 0.0, "machine": 2.0}
    return replace(acting(16), actors=actors, **({"agent_steps_per_s": speed, "cores": cores} | changes))


def test_what_turns_cost_is_taken_from_the_most_actors() -> None:
    found = made([acting(16), several(2, 0.5), several(3, 0.5), several(4, 0.1)])
    assert found.crowding.turns == pytest.approx(0.1)
    assert found.fitted_keys == {(1, 16, 1, False), (4, 16, 1, False)}
    # Of three on two cores, two take turns.
    assert made([acting(16), several(3, 0.1)]).crowding.turns == pytest.approx(0.1 / (2 / 3))
    # A part of it may be that neighbours are busy: 0.25 by one half, of which the first point knows a fifth.
    busy = made([acting(16), several(4, 0.1)], neighbours=0.05)
    assert busy.crowding.turns == pytest.approx(1.1 / (1.05 / (1 + 0.05 * 0.2)) - 1)
    assert made([acting(16), several(4, -0.1)]).crowding.turns == 0.0, "nothing gets cheaper"


def test_turns_are_unknown_where_nobody_shares_a_core() -> None:
    waiting = {"actor_time": dict.fromkeys(PARTS, 0.0) | {"push": 0.6}}
    for points in ([several(2, 0.5)], [several(4, 0.5, **waiting)], []):
        found = made([acting(16), *points])
        assert found.crowding.turns == 0.0
        assert found.fitted_keys == {(1, 16, 1, False)}


def test_turns_cost_the_learner_and_its_loaders_too() -> None:
    one = point(learner=True)  # 0.8 cores act, 0.9 train, 0.1 load
    twice = {"actors": 0.8, "learner": 0.9, "loaders": 0.1, "replay": 0.0, "ray": 0.0, "machine": 2.0}
    rates = {"agent_steps_per_s": 500.0, "updates_per_s": 12.5, "per_s": one.per_s | {"batches": 12.5}}
    assert made([one, replace(one, actors=4, cores=twice, **rates)]).crowding.turns == pytest.approx(1.0)


def test_every_loader_may_take_turns() -> None:
    """An actor, a learner and four loaders that decode half of their time are four processes on two cores."""
    one = point(learner=True, learner_time={"wait": 0.0, "train": 1.0, "publish": 0.0, "other": 0.0})
    half = replace(one, loader_time={"wait": 0.5, "decode": 0.5, "idle": 0.0})
    assert (_runnable(half, 4), _runnable(half, 1), _runnable(replace(half, learner=False), 4)) == (4.0, 2.5, 1.0)


def test_a_push_carries_what_all_environments_complete_in_its_period() -> None:
    found = made([acting(16)])  # fragments of 20 steps, pushed every 10
    assert found.burst(16) == (10, pytest.approx(8))
    assert found.burst(2) == (10, pytest.approx(1))
    assert found.burst(1) == (pytest.approx(20), pytest.approx(1))  # every second period has nothing to push


def test_time_beside_work_counts_only_where_cores_are_to_spare() -> None:
    # 1,000 steps/s of 16 environments are 62.5 batched steps/s; 0.8 of a core, and no waiting to push
    assert made([point()]).costs.actor_idle_s == pytest.approx(0.2 / 62.5)
    full = point().cores | {"machine": 1.95}
    assert made([point(cores=full)]).costs.actor_idle_s == 0.0


def test_it_is_fitted_to_the_fewest_actors_and_the_outermost_environments() -> None:
    points = [point(n, e, repeat=r) for n in (1, 2) for e in (4, 8, 16) for r in (0, 1)]
    assert made(points).fitted_keys == {(1, 4, 1, False), (1, 16, 1, False)}
    with pytest.raises(ConfigError, match="no measured points"):
        made([])


def test_what_was_not_seen_to_happen_has_no_price() -> None:
    with pytest.raises(ConfigError, match=r"no update was made in the 10\.0 s that 1 actors x 16 environments"):
        made([point(learner=True, updates_per_s=0.0)])
    with pytest.raises(ConfigError, match="no step was made"):
        made([point(agent_steps_per_s=0.0)])
    none = made([point(per_s=point().per_s | {"fragments": 0.0})])
    assert none.sizes.fragment_steps == preset("pong-cpu").window.fragment


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    found = made([point(learner=True), point(2, learner=True)], neighbours=0.1)
    write_profile(found, tmp_path / "profile.json")
    assert read_profile(tmp_path / "profile.json") == found


def test_a_damaged_profile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    for text in ("{", "{}", '{"config": {}, "odd": 1}', "[1]"):
        path.write_text(text)
        with pytest.raises(RunFolderError, match="is no profile of this version"):
            read_profile(path)
    write_profile(replace(made([point()]), sizes=replace(made([point()]).sizes, fragment_steps=0)), path)
    with pytest.raises(RunFolderError, match="fragments without steps"):
        read_profile(path)
    with pytest.raises(RunFolderError, match=r"name a profile\.json"):
        read_profile(tmp_path / "none.json")
