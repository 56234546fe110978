from __future__ import annotations

import dataclasses
import time

import pytest

from drqn_dist.presets import preset
from drqn_dist.scaling.settings import ClusterShape
from drqn_dist.scaling.simulate import one_machine, simulate
from tests.scaling.made_up import profile

BIG = ClusterShape(head_cores=64, node_cores=16, link_gbit_per_s=1e5, latency_ms=0.0)


@pytest.mark.parametrize("actors", [1, 3, 16, 40])
def test_where_nothing_is_shared_throughput_grows_with_the_actors(actors: int) -> None:
    found = simulate(profile(push_s=1e-9), actors, 16, dataclasses.replace(BIG, head_cores=1), learner=False)
    assert found.agent_steps_per_s == pytest.approx(1_000 * actors, rel=0.03)
    assert found.actors_blocked == 0.0


def test_twice_as_many_actors_as_cores_are_no_faster() -> None:
    two, four = (simulate(profile(push_s=1e-9), n, 16, one_machine(profile()), learner=False) for n in (2, 4))
    assert two.agent_steps_per_s == pytest.approx(2_000, rel=0.03)
    assert four.agent_steps_per_s == pytest.approx(2_000, rel=0.03)
    assert four.use["actor cores"] == pytest.approx(1.0, abs=0.01)


def test_what_has_no_price_is_taken_from_the_cores() -> None:
    busy = profile(push_s=1e-9, other_cores=0.5)
    assert simulate(busy, 4, 16, one_machine(busy), learner=False).agent_steps_per_s == pytest.approx(1_500, rel=0.03)


def test_hand_overs_between_threads_take_time_but_no_core() -> None:
    idle = profile(push_s=1e-9, actor_idle_s=0.016)
    assert simulate(idle, 1, 16, BIG, learner=False).agent_steps_per_s == pytest.approx(16 / (0.016 + 0.016), rel=0.03)


def test_environments_cost_what_they_cost_and_the_batch_only_once() -> None:
    costs = {"actor_fixed_s": 0.008, "actor_per_env_s": 0.001, "push_s": 1e-9}
    for envs in (4, 32):
        expected = envs / (0.008 + envs * 0.001)
        assert simulate(profile(**costs), 1, envs, BIG, learner=False).agent_steps_per_s == pytest.approx(
            expected, rel=0.03
        )


@pytest.mark.parametrize("shards", [1, 2])
def test_a_shard_saturates_at_one_push_per_service(shards: int) -> None:
    cluster = dataclasses.replace(BIG, shards=shards)
    found = simulate(profile(push_s=0.004), 64, 16, cluster, learner=False)
    # 64,000 steps/s would be 3,200 pushes/s; one shard takes 250, each of 20 steps.
    assert found.agent_steps_per_s == pytest.approx(shards * 250 * 20, rel=0.03)
    assert found.use["replay shard"] == pytest.approx(1.0, abs=0.01)
    assert found.actors_blocked > 0.5
    # 16 fragments of every actor in flight, as many as allowed: they wait for one another.
    assert found.push_s == pytest.approx(64 * 16 * 0.004 / shards, rel=0.1)


def test_a_call_costs_what_it_costs_and_its_fragments_beside_it() -> None:
    # 16 environments complete 8 fragments of 20 steps in a push period of 10 steps: 2 ms a call, 1 ms a fragment.
    found = simulate(profile(push_call_s=0.002, push_s=0.001), 64, 16, BIG, learner=False)
    assert found.agent_steps_per_s == pytest.approx(8 * 20 / (0.002 + 8 * 0.001), rel=0.03)
    # A single environment completes one every two periods, and each goes in a call of its own.
    alone = simulate(profile(push_call_s=0.002, push_s=0.001), 64, 1, BIG, learner=False)
    assert alone.agent_steps_per_s == pytest.approx(20 / 0.003, rel=0.03)


def test_actors_may_have_no_more_pushes_in_flight_than_allowed() -> None:
    config = preset("pong-cpu")
    few = dataclasses.replace(config, actor=dataclasses.replace(config.actor, max_pushes_in_flight=4))
    found = simulate(profile(push_s=0.004, config=few), 64, 16, BIG, learner=False)
    assert found.agent_steps_per_s == pytest.approx(250 * 20, rel=0.03)
    assert found.push_s == pytest.approx(64 * 4 * 0.004, rel=0.1)


def test_there_are_as_many_shards_as_were_measured_unless_told_otherwise() -> None:
    config = preset("pong-cpu")
    two = dataclasses.replace(config, actors=2, replay=dataclasses.replace(config.replay, shards=2))
    for cluster, shards in ((BIG, 2), (dataclasses.replace(BIG, shards=4), 4)):
        found = simulate(profile(push_s=0.004, config=two), 64, 16, cluster, learner=False)
        assert found.agent_steps_per_s == pytest.approx(shards * 250 * 20, rel=0.03)


@pytest.mark.parametrize("actors", [1, 4])
def test_a_slow_learner_holds_the_actors_at_the_replay_ratio(actors: int) -> None:
    found = simulate(profile(), actors, 16, BIG, learner=True)
    # 30 updates/s of 8 windows of 10 steps at 8 samples per insert
    assert found.updates_per_s == pytest.approx(30, rel=0.02)
    assert found.agent_steps_per_s == pytest.approx(30 * 80 / 8, rel=0.05)
    assert found.actors_blocked == pytest.approx(1 - 300 / (1_000 * actors), abs=0.05)
    assert found.use["learner"] > 0.98


def test_slow_actors_hold_the_learner_at_the_replay_ratio() -> None:
    slow = profile(actor_per_env_s=0.01, push_s=1e-6)
    found = simulate(slow, 1, 16, BIG, learner=True)
    assert found.agent_steps_per_s == pytest.approx(100, rel=0.05)
    assert found.updates_per_s == pytest.approx(100 * 8 / 80, rel=0.1)
    assert found.learner_waits == pytest.approx(1 - 10 / 30, abs=0.05)


@pytest.mark.parametrize("actors", [2, 4])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_cores_that_all_parts_share_are_divided_by_what_an_acted_step_costs_everywhere(
    actors: int, ratio: float
) -> None:
    """Whoever gets more of the cores at first, the rate limiter makes the others follow."""
    config = preset("pong-cpu")
    balanced = dataclasses.replace(config, replay=dataclasses.replace(config.replay, samples_per_insert=ratio))
    shared = profile(config=balanced, loader_s=0.004, learner_s=0.02)
    found = simulate(shared, actors, 16, one_machine(shared), learner=True)
    step_s = 0.001 + 0.001 / 20 + ratio / 80 * (0.004 + 0.02)
    assert found.settled
    assert found.agent_steps_per_s == pytest.approx(2 / step_s, rel=0.04)
    assert found.updates_per_s * 80 == pytest.approx(found.agent_steps_per_s * ratio, rel=0.02)


@pytest.mark.parametrize(("actors", "shards"), [(3, 2), (7, 4)])
def test_shards_with_unequal_numbers_of_actors_settle_too(actors: int, shards: int) -> None:
    """The ratio is that of the whole: the shards of fewer actors hold nobody up."""
    cluster = dataclasses.replace(BIG, shards=shards, learner_speedup=20.0, loaders=4)
    began = time.process_time()
    config = preset("pong-cpu")
    balanced = dataclasses.replace(config, replay=dataclasses.replace(config.replay, samples_per_insert=1.0))
    found = simulate(profile(config=balanced), actors, 16, cluster, learner=True)
    assert found.settled
    assert time.process_time() - began < 20
    assert found.agent_steps_per_s == pytest.approx(1_000 * actors, rel=0.05)


def test_a_faster_learner_is_fed_until_the_loader_is_busy_all_the_time() -> None:
    slow = profile(loader_s=0.01, push_s=1e-6)
    cluster = dataclasses.replace(BIG, learner_speedup=100.0)
    found = simulate(slow, 16, 16, cluster, learner=True)
    assert found.updates_per_s == pytest.approx(100, rel=0.03)
    assert found.use["loader"] > 0.98
    twice = simulate(slow, 16, 16, dataclasses.replace(cluster, loaders=2), learner=True)
    assert twice.updates_per_s == pytest.approx(200, rel=0.05)


def test_shards_divide_the_work_of_a_batch() -> None:
    for shards in (1, 4):
        cluster = dataclasses.replace(BIG, shards=shards, learner_speedup=100.0, loaders=8)
        found = simulate(profile(sample_s=0.02, push_s=1e-6), 64, 16, cluster, learner=True)
        assert found.updates_per_s == pytest.approx(50 * shards, rel=0.05)


def test_policy_lag_grows_with_the_publish_period_and_with_slow_links() -> None:
    config = preset("pong-cpu")
    rare = dataclasses.replace(config, learner=dataclasses.replace(config.learner, publish_period_updates=200))
    often, seldom = (simulate(profile(config=c), 2, 16, BIG, learner=True) for c in (config, rare))
    assert seldom.policy_lag - often.policy_lag == pytest.approx((200 - 20) / 2, rel=0.35)
    # 2 MB over 1 Mbit/s are 16 s = 480 updates.
    slow = simulate(profile(), 2, 16, dataclasses.replace(BIG, link_gbit_per_s=0.001), learner=True)
    assert slow.policy_lag > 400


def test_policy_lag_counts_the_time_that_actors_wait_to_push() -> None:
    """On average weights are half a publish period old when they come, and act until the next pull."""
    config = preset("pong-cpu")
    balanced = dataclasses.replace(config, replay=dataclasses.replace(config.replay, samples_per_insert=1.0))
    found = simulate(profile(config=balanced), 16, 16, BIG, learner=True)
    assert found.actors_blocked > 0.5
    pull_s = config.actor.weight_pull_period_steps * 16 * 16 / found.agent_steps_per_s
    expected = config.learner.publish_period_updates / 2 + pull_s / 2 * found.updates_per_s
    assert found.policy_lag == pytest.approx(expected, rel=0.1)


def test_a_narrow_link_of_the_head_is_the_limit_that_it_should_be() -> None:
    # 16 kB/s carry 16,000 / 3,000 fragments of 20 steps a second.
    found = simulate(profile(), 4, 16, dataclasses.replace(BIG, link_gbit_per_s=16e3 * 8 / 1e9), learner=False)
    assert found.agent_steps_per_s == pytest.approx(16_000 / 3_000 * 20, rel=0.05)
    assert found.use["head link"] > 0.95


def test_the_same_seed_gives_the_same_prediction() -> None:
    varied = profile(actor_cv=1.0, learner_cv=0.5)
    first, again, other = (simulate(varied, 2, 16, one_machine(varied), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_thousand_actors_take_seconds() -> None:
    began = time.process_time()
    simulate(profile(actor_cv=0.5, learner_cv=0.2), 1_024, 16, BIG, learner=True)
    simulate(profile(actor_cv=0.5, push_s=1e-5), 1_024, 16, BIG, learner=False)
    assert time.process_time() - began < 30
