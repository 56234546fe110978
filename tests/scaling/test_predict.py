from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from typing import Any

import pytest

from drqn_dist.errors import ConfigError
from drqn_dist.presets import preset
from drqn_dist.scaling.predict import Costs, advice, compare, error_sentence, predict, simulate, simulated_text
from drqn_dist.scaling.settings import ClusterShape
from tests.scaling.made_up import costs, point, settings

BIG = ClusterShape(head_cores=64)
ACTING = costs(point())
"""An actor makes 1,250 steps/s on a core of its own; a shard takes 20,000."""
TRAINING = costs(point(learner=True))
"""The same with a learner that makes 1 / 0.036 updates/s: 277.8 steps/s at 8 samples per insert."""


def test_costs_are_medians_of_all_points() -> None:
    speeds: tuple[dict[str, Any], ...] = {"agent_steps_per_s": 900.0}, {}, {"agent_steps_per_s": 100.0}
    found = costs(*[point(repeat=r, **changes) for r, changes in enumerate(speeds)])
    assert found.acting_s == pytest.approx(0.8 / 900)
    assert found.replay_s == pytest.approx(0.05 / 900)


def test_an_update_costs_all_cpu_time_of_the_learner() -> None:
    assert costs(point(learner=True)).update_s == pytest.approx(0.9 / 25)


def test_what_belongs_to_no_role_is_other_work() -> None:
    cores = {"actors": 0.8, "learner": 0.5, "replay": 0.05, "ray": 0.05, "machine": 1.6}
    trained = costs(point(learner=True, cores=cores))
    assert trained.other_cores == pytest.approx(1.6 - 0.8 - 0.5 - 0.05)
    resting = costs(point(cores=cores))  # without training, the learner's process is other work too
    assert resting.other_cores == pytest.approx(1.6 - 0.8 - 0.05)


def test_what_was_not_seen_to_happen_has_no_cost() -> None:
    with pytest.raises(ConfigError, match=r"1 actors x 16 environments made no step .* in 10\.0 s; measure longer"):
        costs(point(), point(learner=True, updates_per_s=0.0))
    with pytest.raises(ConfigError, match="measure longer"):
        costs(point(agent_steps_per_s=0.0))


def test_the_settings_of_a_sweep_tell_the_machine_and_the_replay_ratio() -> None:
    config = preset("pong-cpu")
    found = Costs.of({"config": asdict(config), "machine": {"usable_cores": 3}}, [point(learner=True)])
    assert (found.cores, found.shards) == (3, 1)
    assert found.updates_per_step == config.replay.samples_per_insert / (32 * 10)


@pytest.mark.parametrize("actors", [1, 3, 12])
def test_where_nothing_is_shared_throughput_grows_with_the_actors(actors: int) -> None:
    found = predict(ACTING, actors, BIG)
    assert found.agent_steps_per_s == pytest.approx(1_250 * actors)
    assert (found.use["actors"], found.updates_per_s) == (pytest.approx(1), 0.0)


def test_a_shard_carries_what_a_step_costs_it_and_several_carry_more() -> None:
    for shards in (1, 2):
        found = predict(ACTING, 1_000, replace(BIG, shards=shards))
        assert found.agent_steps_per_s == pytest.approx(shards * 1_000 / 0.05)
        assert found.use["replay"] == pytest.approx(1)


def test_a_slow_learner_holds_the_actors_at_the_replay_ratio() -> None:
    found = predict(TRAINING, 4, BIG)
    assert found.updates_per_s == pytest.approx(1 / 0.036)
    assert found.agent_steps_per_s == pytest.approx(80 / 8 / 0.036)
    assert found.use["learner"] == pytest.approx(1)
    faster = predict(TRAINING, 4, replace(BIG, learner_speedup=10.0))
    assert faster.agent_steps_per_s == pytest.approx(10 * found.agent_steps_per_s)


def test_shared_cores_are_divided_by_what_a_step_costs_everywhere() -> None:
    cores = {"actors": 0.8, "learner": 0.9, "replay": 0.0, "ray": 0.1, "machine": 2.0}
    shared = costs(point(learner=True, cores=cores, updates_per_s=100.0))
    found = predict(shared, 4, ClusterShape(actor_cores=None))
    # 0.3 of the two cores are other work; a step costs 0.8 ms to act and a tenth of 9 ms to train.
    assert found.agent_steps_per_s == pytest.approx(1.7 / (0.0008 + 0.0009))
    assert found.use["head cores"] == pytest.approx(1)
    alone = predict(shared, 1, ClusterShape(actor_cores=None, head_cores=64))
    assert alone.agent_steps_per_s == pytest.approx(1_111, rel=1e-3), "the learner has one core however many there are"


def test_an_actor_with_a_part_of_a_core_is_slower_and_with_two_no_faster() -> None:
    speeds = [predict(ACTING, 2, replace(BIG, actor_cores=cores)).agent_steps_per_s for cores in (0.5, 1, 2)]
    assert speeds == pytest.approx([1_250, 2_500, 2_500])


def test_every_point_is_predicted_from_the_others() -> None:
    points = [point(1), point(1, repeat=1), point(2), point(3, agent_steps_per_s=500.0)]
    one, two, three = compare(settings(cores=64), points)
    assert (one["measured"], two["measured"], three["measured"]) == (1_000, 2_000, 500)
    # Costs are medians: 0.8 ms without the slow point, which does 0.48 of its work in 4.8 ms a step.
    assert three["predicted"] == pytest.approx(3 * 1_250)
    assert three["error"] == pytest.approx(3 * 1_250 / 500 - 1)
    said = error_sentence([one, two, three])
    assert said.startswith("Each of 3 measured points is predicted from the others: off by ")
    assert "at worst by +650.0% (at 3 actors x 16 environments)" in said


def test_one_number_of_actors_alone_tells_no_error() -> None:
    assert compare(settings(), [point(1), point(1, repeat=1), point(2, envs=32)]) == []
    assert error_sentence([]).startswith("The error is unknown")


def test_only_measured_numbers_of_environments_can_be_predicted_each_from_its_own_points() -> None:
    points = [point(1), point(1, envs=32, agent_steps_per_s=2_000.0)]
    speeds = [simulate(settings(), points, [1], e, BIG)["predictions"][0]["agent_steps_per_s"] for e in (16, 32)]
    assert speeds == pytest.approx([1_000 / 0.8, 2_000 / 0.8])
    with pytest.raises(ConfigError, match="nothing was measured with 8 environments per actor, only with 16, 32; name"):
        simulate(settings(), points, [1], 8, BIG)
    with pytest.raises(ConfigError, match=r"only with none; .* measure some"):
        simulate(settings(), [], [1], 16, BIG)


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        (BIG, "the bottleneck is the learner .* To go faster: a faster learner"),
        (replace(BIG, learner_speedup=50.0), "the bottleneck is the actors .* To go faster: more actors"),
        (
            ClusterShape(head_cores=1, actor_cores=None, learner_speedup=50.0),
            "is the head cores .* more cores for the head",
        ),
    ],
)
def test_the_advice_is_to_buy_more_of_what_is_used_up(cluster: ClusterShape, words: str) -> None:
    assert re.search(words, advice(predict(TRAINING, 8, cluster)))


def test_a_simulation_is_json_and_can_be_read_by_people() -> None:
    result = json.loads(json.dumps(simulate(settings(), [point(1), point(2)], [1, 1_000], 16, BIG)))
    lines = simulated_text(result).splitlines()
    assert lines[1].split()[:3] == ["1", "1,250", "0.0"]
    assert "To go faster: more replay shards" in lines[3]
    assert lines[-2].split()[:3] == ["2", "16", "2,000"]
    assert lines[-1] == result["error"]
    assert result["costs"]["acting_s"] == pytest.approx(0.0008)


def test_a_shard_without_an_actor_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 actors cannot fill 4 shards"):
        predict(ACTING, 2, replace(BIG, shards=4))
