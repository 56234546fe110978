from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.actor import Actor
from drqn_dist.config import TrainConfig
from drqn_dist.errors import FragmentError
from drqn_dist.fragment import Fragment
from drqn_dist.presets import preset
from drqn_dist.qlearning.exploration import epsilon_ladder
from drqn_dist.seeding import derive_seed
from tests.fakes import FakeEnv, FakeSink, FakeWeights, Script
from tests.oracles import fragment_priorities, step_through, step_through_all
from tests.play import Played, play
from tests.tiny import IMAGE, VECTOR, make_network, tiny_config

LIVES = [Script(9, "life"), Script(8, "life"), Script(3)]
MIXED = [Script(5), Script(16, "truncated"), Script(1), Script(8, "truncated")]


def check_fragments(played: Played) -> None:
    """Fragments laid end to end are the episodes, and their counters grow by one."""
    episodes: dict[tuple[int, int], list[Fragment]] = {}
    for env_id in range(played.env.num_envs):
        mine = [f for f in played.sink.fragments if f.env_id == env_id]
        assert [f.sequence_no for f in mine] == list(range(len(mine)))
        for one, two in pairwise(mine):
            assert two.episode_id == one.episode_id + one.ends_episode
        for fragment in mine:
            episodes.setdefault((env_id, fragment.episode_id), []).append(fragment)
    for (env_id, episode_id), fragments in episodes.items():
        episode = played.episode(env_id, episode_id)
        step = 0
        for fragment in fragments:
            assert fragment.first_step == step
            end = step + fragment.num_steps
            assert fragment.actions.tolist() == episode.actions[step:end]
            assert fragment.rewards.tolist() == episode.rewards[step:end]
            assert np.array_equal(fragment.observations, np.stack(episode.observations[step : end + 1]))
            assert fragment.terminated == (episode.terminated and end == episode.num_steps)
            assert fragment.truncated == (episode.truncated and end == episode.num_steps)
            step = end


@pytest.mark.parametrize("spec", [VECTOR, IMAGE])
def test_fragments_are_the_episodes_without_the_rows_of_resets(spec: Any) -> None:
    config = tiny_config()
    played = play(config, spec, [MIXED, LIVES, [Script(1)]], steps=45, network=make_network(config, spec))
    check_fragments(played)
    ends = {(f.env_id, f.episode_id): f.ends_episode for f in played.sink.fragments}
    for env_id, episodes in enumerate(played.env.episodes):
        # An episode is complete when its final observation has been looked at, one step later.
        assert sum(ended for (env, _), ended in ends.items() if env == env_id) in (
            sum(e.ended for e in episodes),
            sum(e.ended for e in episodes) - 1,
        )


def test_a_lost_life_loses_no_transition_and_its_final_observation_begins_the_next_episode() -> None:
    config = tiny_config()
    played = play(config, VECTOR, [LIVES], steps=23, network=make_network(config, VECTOR))
    first, second, third = [[f for f in played.sink.fragments if f.episode_id == i] for i in range(3)]
    assert [f.num_steps for f in first] == [8, 1]
    assert [f.num_steps for f in second] == [8]
    assert [f.num_steps for f in third] == [3]
    assert first[-1].observations[-1].tolist() == second[0].observations[0].tolist()
    assert first[-1].terminated
    assert second[0].terminated
    assert played.actor.take_stats().agent_steps == 9 + 8 + 3 + 2  # one step reset the game


def test_scores_are_of_whole_games_unclipped_and_not_of_lives() -> None:
    config = tiny_config()
    played = play(config, VECTOR, [LIVES, [Script(4, "truncated")]], steps=30, network=make_network(config, VECTOR))
    games = played.actor.take_stats().episodes
    lives, rest = played.env.episodes[0][:3], played.env.episodes[1]
    scores = [sum(sum(life.rewards) for life in lives), *(sum(e.rewards) for e in rest if e.ended)]
    assert sorted(game.score for game in games) == sorted(scores)
    assert sorted(game.steps for game in games) == sorted([9 + 8 + 3, *(4 for e in rest if e.ended)])
    assert played.actor.take_stats().episodes == []


def test_counts_the_steps_of_environments_that_were_not_just_being_reset() -> None:
    config = tiny_config(actor={"envs_per_actor": 2})
    env = FakeEnv(VECTOR, [[Script(2)], [Script(4)]])
    actor = Actor(config, 0, FakeSink(), FakeWeights(make_network(config, VECTOR)), env=env)
    assert [actor.step() for _ in range(6)] == [2, 2, 1, 2, 1, 1]
    stats = actor.take_stats()
    assert stats.agent_steps == 2 + 2 + 1 + 2 + 1 + 1
    assert stats.fragments == 3
    assert actor.take_stats().agent_steps == 0


def test_time_is_accounted_for_by_parts() -> None:
    config = tiny_config(actor={"envs_per_actor": 2})
    network = make_network(config, VECTOR)
    actor = Actor(config, 0, FakeSink(), FakeWeights(network), env=FakeEnv(VECTOR, [[Script(2)], [Script(4)]]))
    actor.take_stats()
    for _ in range(40):
        actor.step()
    stats = actor.take_stats()
    parts = [getattr(stats, f"{name}_s") for name in ("env", "policy", "build", "encode", "push", "weights")]
    assert min(parts) > 0
    assert 0.5 * stats.wall_s < sum(parts) < stats.wall_s
    assert stats.cpu_s > 0
    assert stats.index == 0
    assert actor.take_stats().wall_s < stats.wall_s


@settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    core=st.sampled_from(["gru", "lstm", "none"]),
    unroll=st.integers(1, 5),
    overlap=st.integers(0, 4),
    n_step=st.integers(1, 5),
    multiple=st.integers(1, 3),
    burn_in=st.integers(0, 6),
    rescale=st.booleans(),
    clip=st.booleans(),
    extra=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_initial_priorities_and_stored_states_equal_the_oracle(
    core: str,
    unroll: int,
    overlap: int,
    n_step: int,
    multiple: int,
    burn_in: int,
    rescale: bool,
    clip: bool,
    extra: bool,
    seed: int,
) -> None:
    stride = max(1, unroll - overlap)
    config = tiny_config(
        network={"core": core, "last_action_and_reward": extra},
        learner={
            "unroll_steps": unroll,
            "n_step": n_step,
            "burn_in_steps": burn_in,
            "rescale_values": rescale,
            "reward_scale": 0.5 if rescale else 1.0,
            "clip_rewards": clip,
            "gamma": 0.9,
        },
        replay={"window_stride_steps": stride},
        actor={"fragment_steps": stride * multiple},
    )
    network = make_network(config, VECTOR, seed)
    played = play(config, VECTOR, [MIXED, LIVES], steps=30, network=network)
    check_fragments(played)
    for fragment in played.sink.fragments:
        episode = played.episode(fragment.env_id, fragment.episode_id)
        end = fragment.first_step + fragment.num_steps
        expected = fragment_priorities(config, network, episode, fragment.first_step, end)
        assert fragment.priorities.tolist() == pytest.approx(expected, abs=1e-4)
        _, states = step_through_all(network, episode, config.env.stack_frames)
        wanted = [k for k in range(fragment.num_steps) if config.window.needs_state_at(fragment.first_step + k)]
        assert sorted(fragment.states) == ([] if core == "none" else wanted)
        for k, state in fragment.states.items():
            np.testing.assert_allclose(state, states[fragment.first_step + k][:, 0].numpy(), atol=1e-5)
            if fragment.first_step + k == 0:
                assert not state.any()


def test_a_state_is_stored_where_a_window_may_start_and_nowhere_else() -> None:
    config = tiny_config(learner={"unroll_steps": 4, "burn_in_steps": 3})
    played = play(config, VECTOR, [[Script(20)]], steps=22, network=make_network(config, VECTOR))
    stored = sorted(f.first_step + k for f in played.sink.fragments for k in f.states)
    assert stored == [0, *(k * 4 - 3 for k in range(1, 6) if k * 4 - 3 < 20)]
    starts = {max(0, k * 4 - 3) for k in range(5)}
    assert starts <= set(stored)


def test_no_state_is_stored_where_windows_start_from_zero() -> None:
    config = tiny_config(learner={"stored_state": False})
    played = play(config, VECTOR, [[Script(20)]], steps=22, network=make_network(config, VECTOR))
    assert [f.states for f in played.sink.fragments] == [{}, {}, {}]


def pulling(config: TrainConfig, weights: FakeWeights, scripts: list[list[Script]]) -> tuple[Actor, FakeEnv, FakeSink]:
    env, sink = FakeEnv(VECTOR, scripts), FakeSink()
    config = replace(config, actor=replace(config.actor, envs_per_actor=len(scripts)))
    return Actor(config, 0, sink, weights, env=env), env, sink


def test_weights_are_pulled_every_period_and_newer_ones_are_used_at_once() -> None:
    config = tiny_config(actor={"weight_pull_period_steps": 4, "fragment_steps": 8}, learner={"unroll_steps": 4})
    old, new = make_network(config, VECTOR, 1), make_network(config, VECTOR, 2)
    weights = FakeWeights(old, version=3)
    actor, env, sink = pulling(config, weights, [[Script(100)]])
    for _ in range(6):
        actor.step()
    weights.offer(new, version=7)
    for _ in range(12):
        actor.step()
    assert weights.known == [-1, 3, 3, 7, 7]  # before steps 0, 4, 8, 12, 16
    assert actor.take_stats().weight_version == 7
    first, second = sink.fragments
    assert (first.weight_version, second.weight_version) == (3, 7)
    episode = env.episodes[0][0]
    _, states = step_through(old, episode, range(9), old.initial_state(1), 1)
    _, later = step_through(new, episode, range(8, 13), states[8], 1)
    np.testing.assert_allclose(first.states[4], states[4][:, 0].numpy(), atol=1e-6)
    np.testing.assert_allclose(second.states[4], later[12][:, 0].numpy(), atol=1e-6)


def test_a_fragment_names_the_version_that_took_its_last_step() -> None:
    config = tiny_config(actor={"weight_pull_period_steps": 1, "fragment_steps": 4})
    weights = FakeWeights()
    actor, _, sink = pulling(config, weights, [[Script(6)]])
    for step in range(8):
        weights.offer(make_network(config, VECTOR, step), version=10 + step)
        actor.step()
    assert [f.num_steps for f in sink.fragments] == [4, 2]
    assert [f.weight_version for f in sink.fragments] == [10 + 3, 10 + 5]


@pytest.mark.parametrize("period", [1, 3, 8])
def test_fragments_go_in_one_push_per_period_the_same_ones_and_none_waits_longer(period: int) -> None:
    def pushed(push_period_steps: int) -> tuple[list[bytes], list[int], int]:
        """The fragments, the step at which each was pushed, and the number of pushes."""
        config = tiny_config(actor={"push_period_steps": push_period_steps, "envs_per_actor": 3})
        scripts = [MIXED, [Script(16)], [Script(3), Script(7)]]
        weights = FakeWeights(make_network(config, VECTOR))
        sink, at = FakeSink(), []
        actor = Actor(config, 0, sink, weights, env=FakeEnv(VECTOR, scripts))
        for step in range(48):  # a multiple of every period
            actor.step()
            at += [step] * (len(sink.payloads) - len(at))
        assert actor.take_stats().fragments == len(sink.payloads)
        return sink.payloads, at, len(sink.pushes)

    at_once, completed, most = pushed(1)
    payloads, sent, pushes = pushed(period)
    assert payloads == at_once
    waited = np.array(sent) - np.array(completed)
    assert waited.min() == 0
    assert waited.max() == period - 1
    assert pushes < most or period == 1


@pytest.mark.parametrize(("mode", "period"), [("ray", 10), ("serial", 1)])
def test_an_automatic_push_period_saves_calls_where_they_cost_something(
    mode: Literal["ray", "serial"], period: int
) -> None:
    pong = preset("pong-cpu")
    assert replace(pong, mode=mode).push_period == period
    assert replace(pong, mode=mode, actor=replace(pong.actor, push_period_steps=7)).push_period == 7


def test_an_actor_that_never_got_weights_still_pushes_valid_fragments_and_goes_on_asking() -> None:
    weights = FakeWeights()
    actor, _, sink = pulling(tiny_config(), weights, [[Script(1)]])
    for _ in range(3):
        actor.step()
    assert [f.weight_version for f in sink.fragments] == [0]
    assert weights.known == [-1, -1, -1]


def test_a_replacement_has_the_same_rungs_other_random_numbers_and_higher_counters() -> None:
    config = tiny_config(actors=3, actor={"epsilon_low": 0.01, "epsilon_high": 0.4})
    network = make_network(config, VECTOR)
    envs, sinks = [], []
    for incarnation in (0, 1):
        env, sink = FakeEnv(VECTOR, [[Script(2)], [Script(2)]]), FakeSink()
        actor = Actor(config, 1, sink, FakeWeights(network), incarnation=incarnation, env=env)
        for _ in range(9):
            actor.step()
        envs.append(env)
        sinks.append(sink)
        stats = actor.take_stats()
        assert {episode.epsilon for episode in stats.episodes} == set(epsilon_ladder(2, 2, 6, 0.01, 0.4).tolist())
    assert envs[0].seeds == [derive_seed(0, "environment", 1, 0)]
    assert envs[1].seeds == [derive_seed(0, "environment", 1, 1)] != envs[0].seeds
    for env_id in (0, 1):
        before, after = ([f for f in sink.fragments if f.env_id == env_id] for sink in sinks)
        assert min(f.sequence_no for f in after) > max(f.sequence_no for f in before) + 10**9
        assert min(f.episode_id for f in after) > max(f.episode_id for f in before) + 10**9
        assert [f.sequence_no - after[0].sequence_no for f in after] == [0, 1, 2]
        assert {f.actor_id for f in before + after} == {1}


def test_one_actor_with_one_environment_explores_at_the_lowest_rung() -> None:
    config = tiny_config(actor={"envs_per_actor": 1, "epsilon_low": 0.01, "epsilon_high": 0.4})
    actor = Actor(config, 0, FakeSink(), FakeWeights(make_network(config, VECTOR)), env=FakeEnv(VECTOR, [[Script(3)]]))
    assert actor.take_stats().epsilon == pytest.approx(0.01)


def test_epsilon_decays_with_the_steps_of_all_actors_and_goes_on_after_a_resume() -> None:
    decay = {
        "envs_per_actor": 2,
        "epsilon_decay": "linear",
        "epsilon_decay_steps": 100,
        "epsilon_low": 0.1,
        "epsilon_high": 0.1,
    }
    config = tiny_config(actors=3, actor=decay)
    env = FakeEnv(VECTOR, [[Script(50)], [Script(50)]])
    actor = Actor(config, 0, FakeSink(), FakeWeights(make_network(config, VECTOR)), agent_steps_before=40, env=env)
    assert actor.take_stats().epsilon == pytest.approx(1 - 40 / 100)
    actor.step()
    assert actor.take_stats().epsilon == pytest.approx(1 - (40 + 3 * 2) / 100)
    for _ in range(20):
        actor.step()
    assert actor.take_stats().epsilon == pytest.approx(0.1)


def test_the_same_seed_gives_the_same_fragments_and_another_seed_others() -> None:
    def payloads(seed: int) -> list[bytes]:
        config = tiny_config(seed=seed)
        return play(config, VECTOR, [MIXED, LIVES], steps=20, network=make_network(config, VECTOR)).sink.payloads

    assert payloads(0) == payloads(0) != payloads(1)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("rewards", "reward at episode step 0 of environment 0 is not finite"),
        ("observations", "an observation of environment 0 is not finite"),  # though the network's Q values follow it
    ],
)
def test_what_is_not_a_number_stops_the_actor_and_is_blamed_on_the_environment(field: str, message: str) -> None:
    class Broken(FakeEnv):
        def step(self, actions: Any) -> Any:
            batch = super().step(actions)
            getattr(batch, field)[0] = np.nan
            return batch

    config = tiny_config(actor={"envs_per_actor": 1})
    env = Broken(VECTOR, [[Script(2)]])
    actor = Actor(config, 0, FakeSink(), FakeWeights(make_network(config, VECTOR)), env=env)

    def play() -> None:
        for _ in range(3):
            actor.step()

    with pytest.raises(FragmentError, match=f"{message}; check the environment"):
        play()


def test_makes_the_environments_that_the_configuration_names_and_closes_what_it_was_given() -> None:
    config = tiny_config(env={"id": "CartPole-v1"}, network={"torso": "auto"})
    actor = Actor(config, 0, FakeSink(), FakeWeights())
    assert actor.step() == 2
    actor.close()
    env = FakeEnv(VECTOR, [[Script(2)], [Script(2)]])
    Actor(tiny_config(), 0, FakeSink(), FakeWeights(), env=env).close()
    assert env.closed


def test_run_steps_for_about_the_time_it_is_given() -> None:
    config = tiny_config()
    env = FakeEnv(VECTOR, [[Script(5)], [Script(5)]])
    stats = Actor(config, 0, FakeSink(), FakeWeights(make_network(config, VECTOR)), env=env).run(0.05)
    assert stats.agent_steps > 0
    assert stats.policy_s + stats.env_s + stats.build_s + stats.push_s + stats.weights_s < 5
