from __future__ import annotations

from dataclasses import replace

import pytest

from actors.evaluator import EvaluationStopped, Evaluator, Played
from drqn_dist.config import TrainConfig
from drqn_dist.interfaces import WeightSnapshot
from tests.fakes import FakeEnv, Script
from tests.tiny import VECTOR, make_network, tiny_config


def snapshot(config: TrainConfig, seed: int = 0) -> WeightSnapshot:
    return WeightSnapshot(17, make_network(config, VECTOR, seed).to_vector())


CONFIG = tiny_config(eval={"envs": 3, "epsilon": 0.3})
SCRIPTS = [[Script(2)], [Script(9, "truncated")], [Script(3, "life"), Script(4)]]


def test_every_environment_plays_an_equal_share_so_that_short_games_are_not_favoured() -> None:
    env = FakeEnv(VECTOR, SCRIPTS)
    weights = snapshot(CONFIG)
    result = Evaluator(CONFIG, 7, env).evaluate(weights, seed=5)
    assert result.version == 17
    assert result.weights is weights
    # 3 + 2 + 2 games; the last environment's have two lives.
    games = [episodes[:count] for episodes, count in zip(env.episodes, (3, 2, 4), strict=True)]
    short, long, lives = ([sum(episode.rewards) for episode in row] for row in games)
    assert result.scores == (*short, *long, lives[0] + lives[1], lives[2] + lives[3])


def test_scores_are_the_unclipped_sums_of_whole_games() -> None:
    env = FakeEnv(VECTOR, SCRIPTS)
    result = Evaluator(CONFIG, 3, env).evaluate(snapshot(CONFIG), seed=5)
    sums = [[sum(e.rewards) for e in episodes] for episodes in env.episodes]
    assert result.scores == (sums[0][0], sums[1][0], sums[2][0] + sums[2][1])


def test_the_same_seed_gives_the_same_scores_even_from_an_evaluator_that_was_used_before() -> None:
    evaluator = Evaluator(CONFIG, 5, FakeEnv(VECTOR, SCRIPTS))
    first = evaluator.evaluate(snapshot(CONFIG), seed=5)
    other = evaluator.evaluate(snapshot(CONFIG), seed=6)
    assert evaluator.evaluate(snapshot(CONFIG), seed=5) == first
    assert other.scores != first.scores
    fresh = Evaluator(CONFIG, 5, FakeEnv(VECTOR, SCRIPTS))
    assert fresh.evaluate(snapshot(CONFIG), seed=5) == first


def test_a_real_environment_gives_the_same_scores_for_the_same_seed_and_plays_the_weights_it_is_given() -> None:
    config = tiny_config(env={"id": "CartPole-v1"}, network={"torso": "auto"}, eval={"envs": 2})
    evaluator = Evaluator(config, 4)
    good = WeightSnapshot(1, evaluator._network.to_vector())
    still = WeightSnapshot(2, 0 * good.vector)  # always the first action: falls over within a dozen steps
    first, second = evaluator.evaluate(good, 3), evaluator.evaluate(still, 3)
    assert evaluator.evaluate(good, 3) == first
    assert max(second.scores) < 13
    evaluator.close()


def test_progress_tells_after_every_step_how_many_games_have_ended_and_steps_were_played() -> None:
    seen: list[Played] = []
    Evaluator(CONFIG, 4, FakeEnv(VECTOR, SCRIPTS)).evaluate(snapshot(CONFIG), 0, seen.append)
    assert seen[0] == Played(0, 3), "no game has ended yet"
    assert seen[-1].episodes == 4
    assert seen[-1].steps == 2 + 2 + 9 + 7, "steps of games that count"
    assert seen == sorted(seen)


@pytest.mark.parametrize(("envs", "episodes", "expected"), [(None, 5, 5), (None, 100, 32), (8, 3, 3), (2, 5, 2)])
def test_never_makes_more_environments_than_there_are_episodes(envs: int | None, episodes: int, expected: int) -> None:
    config = replace(
        tiny_config(env={"id": "CartPole-v1"}, network={"torso": "auto"}), eval=replace(CONFIG.eval, envs=envs)
    )
    evaluator = Evaluator(config, episodes)
    assert evaluator._env.num_envs == expected
    evaluator.close()


def test_closes_its_environments() -> None:
    env = FakeEnv(VECTOR, SCRIPTS)
    Evaluator(CONFIG, 3, env).close()
    assert env.closed


def test_a_game_that_does_not_end_counts_as_it_stands_and_those_after_it_are_left_out() -> None:
    config = tiny_config(eval={"envs": 2, "epsilon": 0.3, "max_steps": 10})
    env = FakeEnv(VECTOR, [[Script(4)], [Script(6), Script(10**6)]])
    result = Evaluator(config, 6, env).evaluate(snapshot(config), seed=7)
    # 10 steps for each of 3 games: the second environment's third game would begin at step 30.
    games = [episode.rewards for episode in (*env.episodes[0][:3], env.episodes[1][0])]
    assert [len(rewards) for rewards in games] == [4, 4, 4, 6]
    cut = env.episodes[1][1].rewards
    assert cut[23] != 0, "so that one step more or less shows"
    expected = [*map(sum, games), sum(cut[:24])]
    assert result.scores == pytest.approx(tuple(expected))
    # One was ended, one never began.
    assert result.cut_short == 2


def test_it_stops_when_it_is_asked_to() -> None:
    config = tiny_config(eval={"envs": 1})
    steps = iter(range(100))
    with pytest.raises(EvaluationStopped):
        Evaluator(config, 1, FakeEnv(VECTOR, [[Script(10**6)]])).evaluate(
            snapshot(config), 0, stopping=lambda: next(steps) == 5
        )
    assert next(steps) == 6
