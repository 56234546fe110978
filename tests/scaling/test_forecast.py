from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from drqn_dist.errors import ConfigError
from drqn_dist.scaling.forecast import advice, caution, extrapolation, predict, saturation, validate, verdict
from drqn_dist.scaling.settings import ClusterShape
from drqn_dist.scaling.simulate import Prediction
from drqn_dist.scaling.text import simulated_text
from tests.scaling.made_up import point, profile

CLUSTER = ClusterShape(head_cores=16)


def prediction(blocked: float, **use: float) -> Prediction:
    idle = dict.fromkeys(("actor cores", "head cores", "replay shard", "loader", "learner", "head link"), 0.1)
    return Prediction(64, 16, True, 1.0, 1.0, 1.0, 0.1, blocked, 0.3, idle | use)


def test_saturation_follows_from_service_times() -> None:
    found = saturation(
        profile(push_call_s=0.016, push_s=0.004, sample_s=0.01, priorities_s=0.002), 16, CLUSTER, learner=True
    )
    # 8 fragments in a push.
    # 8 samples per insert and 80 steps per batch: a tenth of a batch for each step, and half a call with priorities
    per_step = (0.004 + 0.016 / 8) / 20 + 0.1 * (0.01 + 0.002 / 2)
    assert found.shard_steps_per_s == pytest.approx(1 / per_step)
    assert found.shard_actors == pytest.approx(1 / per_step / 1_000)
    assert found.shard_updates_per_s == pytest.approx(0.1 / per_step)
    assert (found.learner_updates_per_s, found.learner_steps_per_s) == (pytest.approx(30), pytest.approx(300))
    assert found.learner_actors == pytest.approx(0.3)
    acting = saturation(profile(push_s=0.004), 16, CLUSTER, learner=False)
    assert acting.shard_steps_per_s == pytest.approx(20 / 0.004)
    assert acting.learner_updates_per_s == 0.0


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (prediction(0.5, learner=0.99), r"buy a faster learner .*: the learner is in use 99% of the time"),
        (prediction(0.5, **{"replay shard": 0.97}), "buy more replay shards"),
        (prediction(0.5, loader=0.99), "buy more loaders"),
        (prediction(0.5, **{"head link": 0.96}), "buy a faster network for the head"),
        (prediction(0.5, **{"head cores": 1.0, "learner": 0.98}), "buy more cores for the head"),
        (prediction(0.5, **{"head cores": 0.92, "learner": 0.95}), "buy a faster learner"),
        (
            prediction(0.5, **{"head cores": 0.8, "loader": 0.7}),
            r"raise learner.prefetch_batches, .* 70% of the time \(the loader\), yet the learner waits 30%",
        ),
        (
            prediction(0.0, **{"actor cores": 0.99}),
            "buy more actor cores: theirs are in use 99% .* the learner waits 30%",
        ),
    ],
)
def test_the_advice_is_to_buy_more_of_what_is_used_up(found: Prediction, words: str) -> None:
    said = advice(found, saturation(profile(), 16, CLUSTER, learner=True))
    assert said.startswith("At 64 actors ")
    assert re.search(words, said), said


def test_a_forecast_is_json_and_can_be_read_by_people() -> None:
    result = json.loads(json.dumps(predict(profile(push_s=0.002), [1, 32], 16, CLUSTER, learner=False)))
    lines = simulated_text(result).splitlines()
    assert lines[1].split()[0] == "1"
    assert "2.00 ms for each fragment" in lines[-2]
    assert "it carries 10,000 steps/s, 10.0 actors of 16 environments with a core each." in lines[-2]
    assert "buy more replay shards" in lines[-1]


def test_a_profile_without_a_learner_cannot_predict_one() -> None:
    with pytest.raises(ConfigError, match="measured without a learner; add --no-learner"):
        predict(profile(learner_s=0.0), [1], 16, CLUSTER, learner=True)


def test_validation_tells_seen_points_from_unseen_and_gives_the_error() -> None:
    fitted = replace(profile(push_s=1e-9), fitted_to=[[1, 16, 1, False]], points=[vars(point(1))])
    points = [point(1), *(point(2, repeat=r, agent_steps_per_s=v) for r, v in enumerate((1_500.0, 1_600.0, 1_900.0)))]
    one, two = validate(fitted, points)
    assert (one.fitted, two.fitted) == (True, False)
    assert (two.measured, two.least, two.greatest) == (1_600.0, 1_500.0, 1_900.0)
    assert two.simulated == pytest.approx(2_000, rel=0.03)  # two actors of 1,000 steps/s on the profile's two cores
    assert two.error == pytest.approx(2_000 / 1_600 - 1, abs=0.04)
    said = verdict([one, two], 4)
    assert said.startswith("Over 1 points that it was not fitted to, ")
    assert "at 2 actors x 16 environments without a learner" in said
    assert "fitted to all" in verdict([one], 1)
    assert "all 3 were measured over several nodes, or with a learner that" in verdict([], 3)
    assert "the file holds none" in verdict([], 0)
    shown: dict[str, Any] = {"validation": [vars(c) for c in (one, two)], "verdict": said}
    assert simulated_text(shown).splitlines()[1].endswith("(fitted to)")


def test_other_measurements_of_a_fitted_point_are_unseen() -> None:
    fitted = replace(profile(push_s=1e-9), fitted_to=[[1, 16, 1, False]], points=[vars(point(1))])
    (found,) = validate(fitted, [point(1, agent_steps_per_s=500.0), point(1)])
    assert (found.fitted, found.measured) == (False, 500.0)


def test_environments_beyond_those_that_were_measured_are_told() -> None:
    known = replace(profile(), points=[vars(replace(point(), envs_per_actor=envs)) for envs in (8, 32)])
    assert extrapolation(known, 8) == extrapolation(known, 16) == extrapolation(known, 32) == ""
    assert "actors of 8, 32 environments: what a step of 64 costs is extrapolated" in extrapolation(known, 64)
    assert extrapolation(known, 4)


def test_prices_of_actors_that_waited_are_told_to_be_too_high() -> None:
    waiting = point(learner=True, actor_time=point().actor_time | {"push": 0.6})
    taken = replace(profile(), fitted_to=[list(waiting.key)], points=[vars(waiting), vars(point(2, learner=True))])
    assert "The actors waited up to 60% of their time" in caution(taken)
    assert caution(replace(taken, fitted_to=[list(point(2, learner=True).key)])) == ""
    most = replace(waiting, actors=4)
    taken = replace(taken, fitted_to=[[n, 16, 1, True] for n in (2, 4)], points=[*taken.points, vars(most)])
    assert caution(taken) == "", "only turns are taken from the most actors"


def test_points_that_the_model_cannot_know_are_left_out() -> None:
    assert validate(profile(learner_s=0.0), [point(2, learner=True)]) == []
    assert validate(profile(), [point(2, nodes=2)]) == []


def test_a_shard_without_an_actor_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 actors cannot fill 4 shards"):
        predict(profile(), [2, 8], 16, replace(CLUSTER, shards=4), learner=False)
