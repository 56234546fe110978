from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from drqn_dist.errors import ConfigError, RunFolderError
from drqn_dist.presets import preset
from drqn_dist.scaling.points import Point
from drqn_dist.scaling.profile import Profile, read_profile
from drqn_dist.scaling.report import write_json
from tests.scaling.made_up import REPLAY, point, profile


def acting(envs: int, **changes: Any) -> Point:
    """An actor whose batched step costs 4 ms and 1 ms per environment, and which has its core to itself."""
    speed = envs / (0.004 + 0.001 * envs)
    cores = {"actors": 1.0, "learner": 0.02, "replay": 0.05, "ray": 0.1, "machine": 1.3}
    values = {"agent_steps_per_s": speed, "fragments_per_s": speed / 20, "cores": cores}
    return point(1, envs, **(values | changes))


def test_costs_of_acting_are_recovered() -> None:
    found = profile([acting(2), acting(64)]).roles()
    assert (found.actor_step_s, found.actor_env_s) == (pytest.approx(0.004), pytest.approx(0.001))
    assert (found.fragment_steps, found.update_s) == (pytest.approx(20), 0.0)


def test_with_one_number_of_environments_all_is_per_environment() -> None:
    found = profile([acting(16)]).roles()
    assert (found.actor_step_s, found.actor_env_s) == (0.0, pytest.approx(0.020 / 16))


def test_costs_are_medians_of_all_points() -> None:
    speeds = {"agent_steps_per_s": 900.0}, {}, {"agent_steps_per_s": 100.0}
    found = profile([point(repeat=r, **changes) for r, changes in enumerate(speeds)]).roles()
    assert found.actor_env_s == pytest.approx(0.8 / 900)


def test_an_update_costs_all_cpu_time_of_the_learner() -> None:
    assert profile([point(learner=True)]).roles().update_s == pytest.approx(0.9 / 25)


def test_the_replay_needs_what_its_calls_and_fragments_cost() -> None:
    # 16 environments complete 8 fragments of 20 steps in a push period of 10; a call draws two batches.
    cores = profile([]).replay_cores(1_000.0, 25.0, 16, 20.0)
    assert cores == pytest.approx(50 * (0.0001 + 0.0008 / 8) + 25 * (0.001 + 0.0006) / 2)
    # One environment completes one fragment every two periods; each goes in a call of its own.
    assert profile([]).replay_cores(1_000.0, 0.0, 1, 20.0) == pytest.approx(50 * (0.0001 + 0.0008))


def test_what_has_no_cost_of_its_own_is_other_work() -> None:
    cores = {"actors": 0.8, "learner": 0.5, "replay": 0.05, "ray": 0.05, "machine": 1.6}
    replay = profile([]).replay_cores(1_000.0, 25.0, 16, 20.0)
    trained = profile([point(learner=True, cores=cores)]).roles()
    assert trained.other_cores == pytest.approx(1.6 - 0.8 - 0.5 - replay)
    resting = profile([point(cores=cores)]).roles()  # without training, the learner's process is other work too
    assert resting.other_cores == pytest.approx(1.6 - 0.8 - profile([]).replay_cores(1_000.0, 0.0, 16, 20.0))


def test_what_was_not_seen_to_happen_has_no_cost() -> None:
    with pytest.raises(ConfigError, match=r"1 actors x 16 environments made no step, .* in 10\.0 s; measure longer"):
        profile([point(), point(learner=True, updates_per_s=0.0)]).roles()
    for nothing in ("agent_steps_per_s", "fragments_per_s"):
        with pytest.raises(ConfigError, match="measure longer"):
            profile([point(**{nothing: 0.0})]).roles()
    with pytest.raises(ConfigError, match="no measured points"):
        profile([]).roles()


def test_a_profile_has_the_numbers_of_its_configuration() -> None:
    config = preset("pong-cpu")
    found = Profile.of(config, [point()], REPLAY, {"usable_cores": 3})
    assert (found.cores, found.shards, found.envs_per_actor) == (3, 1, config.actor.envs_per_actor)
    assert (found.batch_steps, found.push_period_steps) == (320, 10)
    assert found.samples_per_insert == config.replay.samples_per_insert


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    found = profile([point(learner=True), point(2, learner=True)])
    write_json(asdict(found), tmp_path / "profile.json")
    assert read_profile(tmp_path / "profile.json") == found


def test_a_damaged_profile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    whole = asdict(profile([point()]))
    for text in (
        "{",
        "{}",
        "[1]",
        json.dumps(whole | {"points": [[]]}),
        '"points"',
        json.dumps(whole | {"odd": 1}),
        json.dumps(whole | {"points": [1]}),
    ):
        path.write_text(text)
        with pytest.raises(RunFolderError, match="is no usable profile"):
            read_profile(path)
    write_json(asdict(replace(profile([point()]), points=[point(fragments_per_s=0.0)])), path)
    with pytest.raises(RunFolderError, match="no fragment"):
        read_profile(path)
    with pytest.raises(RunFolderError, match=r"name a profile\.json"):
        read_profile(tmp_path / "none.json")
