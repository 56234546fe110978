from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from drqn_dist.errors import ConfigError
from drqn_dist.scaling.predict import Part, advice, compare, error_sentence, predict, simulate
from drqn_dist.scaling.settings import ClusterShape
from drqn_dist.scaling.text import simulated_text
from tests.scaling.made_up import REPLAY, point, profile

BIG = ClusterShape(head_cores=64)
ACTING = profile([point()])
"""An actor makes 1,250 steps/s on a core of its own; a shard takes 100,000."""
TRAINING = profile([point(learner=True)])
"""The same with a learner that makes 1 / 0.036 updates/s: 277.8 steps/s at 8 samples per insert."""


@pytest.mark.parametrize("actors", [1, 3, 40])
def test_where_nothing_is_shared_throughput_grows_with_the_actors(actors: int) -> None:
    found = predict(ACTING, actors, 16, BIG)
    assert found.agent_steps_per_s == pytest.approx(1_250 * actors)
    assert (found.use[Part.ACTORS], found.updates_per_s) == (pytest.approx(1), 0.0)


def test_a_shard_carries_what_its_calls_cost_and_several_carry_more() -> None:
    for shards in (1, 2):
        found = predict(ACTING, 1_000, 16, replace(BIG, shards=shards))
        assert found.agent_steps_per_s == pytest.approx(shards * 20 / 0.0002)
        assert found.use[Part.REPLAY] == pytest.approx(1)
    # Few environments push few fragments in a call, so each costs more.
    assert predict(ACTING, 1_000, 1, BIG).agent_steps_per_s == pytest.approx(20 / 0.0009)


def test_a_slow_learner_holds_the_actors_at_the_replay_ratio() -> None:
    found = predict(TRAINING, 4, 16, BIG)
    assert found.updates_per_s == pytest.approx(1 / 0.036)
    assert found.agent_steps_per_s == pytest.approx(80 / 8 / 0.036)
    assert found.use[Part.LEARNER] == pytest.approx(1)
    faster = predict(TRAINING, 4, 16, replace(BIG, learner_speedup=10.0))
    assert faster.agent_steps_per_s == pytest.approx(10 * found.agent_steps_per_s)


def test_a_fast_learner_leaves_the_replay_as_the_limit() -> None:
    found = predict(TRAINING, 1_000, 16, replace(BIG, learner_speedup=1e6))
    step_s = 0.0002 / 20 + 0.1 * 0.0016 / 2  # a tenth of an update for each step
    assert found.agent_steps_per_s == pytest.approx(1 / step_s)


def test_shared_cores_are_divided_by_what_a_step_costs_everywhere() -> None:
    cores = {"actors": 0.8, "learner": 0.9, "replay": 0.0, "ray": 0.1, "machine": 2.0}
    free = replace(REPLAY, push_call_s=0.0, fragment_s=0.0, sample_call_s=0.0, priorities_call_s=0.0)
    shared = profile([point(learner=True, cores=cores, updates_per_s=100.0)], free)
    found = predict(shared, 4, 16, ClusterShape(actor_cores=0))
    # 0.3 of the two cores are other work; a step costs 0.8 ms to act and a tenth of 9 ms to train.
    assert found.agent_steps_per_s == pytest.approx(1.7 / (0.0008 + 0.0009))
    assert found.use[Part.HEAD] == pytest.approx(1)
    alone = predict(shared, 1, 16, ClusterShape(actor_cores=0, head_cores=64))
    assert alone.agent_steps_per_s == pytest.approx(1_111, rel=1e-3), "the learner has one core however many there are"


def test_an_actor_with_a_part_of_a_core_is_slower_and_with_two_no_faster() -> None:
    speeds = [predict(ACTING, 2, 16, replace(BIG, actor_cores=cores)).agent_steps_per_s for cores in (0.5, 1, 2)]
    assert speeds == pytest.approx([1_250, 2_500, 2_500])


def test_every_point_is_predicted_from_the_others() -> None:
    slow = {"agent_steps_per_s": 500.0, "fragments_per_s": 25.0}
    points = [point(1), point(1, repeat=1), point(2), point(3, **slow)]
    one, two, three = compare(replace(profile(points), cores=64))
    assert (one.measured, two.measured, three.measured) == (1_000, 2_000, 500)
    # Service times are medians: 0.8 ms without the slow point, which does 0.48 of its work in 4.8 ms a step.
    assert three.predicted == pytest.approx(3 * 1_250)
    assert three.error == pytest.approx(3 * 1_250 / 500 - 1)
    said = error_sentence([one, two, three])
    assert said.startswith("Each of 3 measured points is predicted from the others: off by ")
    assert "at worst by +650.0% (at 3 actors x 16 environments)" in said


def test_one_point_alone_tells_no_error() -> None:
    assert compare(profile([point(1), point(1, repeat=1)])) == []
    assert error_sentence([]).startswith("The error is unknown")


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        (BIG, "the bottleneck is the learner .* To go faster: a faster learner"),
        (replace(BIG, learner_speedup=50.0), "the bottleneck is the actors .* To go faster: more actors"),
        (
            ClusterShape(head_cores=1, actor_cores=0, learner_speedup=50.0),
            "is the head cores .* more cores for the head",
        ),
    ],
)
def test_the_advice_is_to_buy_more_of_what_is_used_up(cluster: ClusterShape, words: str) -> None:
    assert re.search(words, advice(predict(TRAINING, 8, 16, cluster)))


def test_a_simulation_is_json_and_can_be_read_by_people() -> None:
    result = json.loads(json.dumps(simulate(profile([point(1), point(2)]), [1, 1_000], 16, BIG)))
    lines = simulated_text(result).splitlines()
    assert lines[1].split()[:3] == ["1", "1,250", "0.0"]
    assert "To go faster: more replay shards" in lines[3]
    assert lines[-2].split()[:3] == ["2", "16", "2,000"]
    assert lines[-1] == result["error"]
    assert result["costs"]["actor_env_s"] == pytest.approx(0.0008)


def test_a_shard_without_an_actor_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 actors cannot fill 4 shards"):
        predict(ACTING, 2, 16, replace(BIG, shards=4))
