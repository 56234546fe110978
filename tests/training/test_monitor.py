from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from actors.actor import ActorStats, Episode
from actors.evaluator import Evaluation
from drqn_dist.training.monitor import Monitor, evaluation_values
from drqn_dist.training.session import Report
from learner.learner import LearnerStats
from replay_server.stats import ReplayStats
from tests.runs import maze_config


def monitor(tmp_path: Path, agent_steps: int = 0, updates: int = 0, wall_s: float = 0.0, **changes: Any) -> Monitor:
    return Monitor(maze_config(tmp_path, **changes), 4, agent_steps, updates, wall_s)


def piece(
    updates: int, new: int, loss: float = 0.0, wait_s: float = 0.0, train_s: float = 1.0, arrived: int | None = None
) -> LearnerStats:
    arrived = new if arrived is None else arrived
    return LearnerStats(updates, new, 0, loss, 0.0, 0.0, 0.0, 0.0, wait_s, train_s, arrived, wall_s=1.0)


def test_counters_go_on_from_those_of_the_run_before(tmp_path: Path) -> None:
    watching = monitor(tmp_path, agent_steps=100, updates=7, wall_s=50.0)
    watching.take(Report(actors=[ActorStats(agent_steps=10), ActorStats(agent_steps=5)], learner=[piece(9, 2)]))
    assert (watching.agent_steps, watching.frames, watching.updates) == (115, 4 * 115, 9)
    assert 50.0 <= watching.wall_s < 60.0


def test_updates_do_not_run_backwards_in_the_log_when_a_learner_makes_up_for_those_that_it_lost(tmp_path: Path) -> None:
    watching, logged = monitor(tmp_path, updates=7), []
    for updates in (9, 8, 9, 10):
        values, shown = watching.take(Report(learner=[piece(updates, 1)]))
        assert watching.updates == updates
        logged.append((values["time/updates"], shown["updates"]))
    assert logged == [(9, 9), (9, 9), (9, 9), (10, 10)]


def test_learner_figures_are_means_over_updates_and_shares_of_time(tmp_path: Path) -> None:
    values, _ = monitor(tmp_path).take(
        Report(learner=[piece(30, 30, 1.0, wait_s=1.0), piece(40, 10, 5.0), piece(40, 0, math.nan)])
    )
    assert values["losses/td_loss"] == (30 * 1.0 + 10 * 5.0) / 40
    assert values["time/waiting_for_replay"] == 1.0 / (1.0 + 1.0 + 1.0)


def test_figures_that_leave_the_device_later_count_with_the_piece_that_they_come_with(tmp_path: Path) -> None:
    late = [piece(30, 30, math.nan, arrived=0), piece(30, 0, 2.0, arrived=20), piece(40, 10, 5.0, arrived=20)]
    values, _ = monitor(tmp_path).take(Report(learner=late))
    assert values["losses/td_loss"] == (20 * 2.0 + 20 * 5.0) / 40


def test_actor_figures_count_actors_that_did_something(tmp_path: Path) -> None:
    busy = ActorStats(agent_steps=10, weight_version=4, epsilon=0.2, env_s=3.0, policy_s=1.0)
    report = Report(actors=[busy, ActorStats(epsilon=0.9)], learner=[piece(10, 10)])
    values, shown = monitor(tmp_path).take(report)
    assert values["charts/epsilon"] == 0.2
    assert values["actors/policy_lag_updates"] == shown["actors/policy_lag_updates"] == 10 - 4
    assert (values["time/actor_env"], values["time/actor_policy"]) == (3 / 4, 1 / 4)


def test_training_returns_are_those_of_the_environments_that_explore_least(tmp_path: Path) -> None:
    episodes = [Episode(1.0, 10, 0.01), Episode(3.0, 20, 0.05), Episode(100.0, 1, 0.06)]
    low = {"epsilon_low": 0.01}
    values, shown = monitor(tmp_path, actor=low).take(Report(actors=[ActorStats(agent_steps=1, episodes=episodes)]))
    assert values["charts/episodic_return"] == shown["charts/episodic_return"] == (1.0 + 3.0) / 2
    assert values["charts/episodic_length"] == (10 + 20) / 2
    # Before such have ended, all count, and no longer afterwards.
    watching = monitor(tmp_path, actor=low)
    for ended, mean in (([Episode(-21.0, 9, 0.9), Episode(-20.0, 9, 0.5)], -20.5), ([], -20.5), (episodes, 2.0)):
        values, _ = watching.take(Report(actors=[ActorStats(agent_steps=1, episodes=ended)]))
        assert values["charts/episodic_return"] == mean
    values, _ = watching.take(Report(actors=[ActorStats(agent_steps=1, episodes=[Episode(-21.0, 9, 0.9)])]))
    assert values["charts/episodic_return"] == 2.0
    # Where even the least explores more, that one counts.
    values, _ = monitor(tmp_path, actor={"epsilon_low": 0.06}).take(Report(actors=[ActorStats(episodes=episodes)]))
    assert values["charts/episodic_return"] == (1.0 + 3.0 + 100.0) / 3


def test_replay_figures(tmp_path: Path) -> None:
    stats = ReplayStats(500, 9_000, 60, 50, 700, 4_800, 600, 0, 0, 0, 3)
    values, shown = monitor(tmp_path, replay={"capacity_steps": 2_000}).take(Report(replay=stats))
    assert (values["replay/steps"], values["replay/bytes"], values["replay/late_priorities"]) == (500, 9_000, 3)
    assert values["replay/fill"] == shown["replay/fill"] == 500 / 2_000
    assert values["replay/samples_per_insert"] == shown["replay/samples_per_insert"] == 8.0


def test_evaluations_are_described_and_the_last_one_is_kept(tmp_path: Path) -> None:
    watching = monitor(tmp_path)
    good, bad = Evaluation(10, (1.0, 3.0), (5, 5)), Evaluation(20, (0.0,), (5,))
    assert evaluation_values(good) == {
        "eval/mean_return": (1.0 + 3.0) / 2,
        "eval/std_return": 1.0,
        "eval/episodes": 2,
        "eval/updates": 10,
    }
    watching.take(Report(evaluations=[good]))
    values, _ = watching.take(Report(evaluations=[bad]))
    assert values["eval/mean_return"] == 0.0
    assert watching.last_evaluation == bad


UPDATES = itertools.count(10, 10)


def scored(*scores: float) -> Report:
    """Evaluations of later and later weights."""
    return Report(evaluations=[Evaluation(next(UPDATES), (score,), (5,)) for score in scores])


def test_the_same_weights_played_twice_are_one_evaluation(tmp_path: Path) -> None:
    watching = monitor(tmp_path, stop_at_return=18.0, eval={"settled_evaluations": 2})
    again = scored(20.0)
    watching.take(again)
    watching.take(again)
    assert not watching.settled()


def test_training_has_settled_once_the_last_evaluations_reach_the_return_on_average(tmp_path: Path) -> None:
    watching = monitor(tmp_path, stop_at_return=18.0, eval={"settled_evaluations": 3})
    watching.take(scored(21.0))
    watching.take(scored(20.0))
    assert not watching.settled()  # two are not three, however good
    watching.take(scored(12.0))
    assert not watching.settled()  # (21 + 20 + 12) / 3 = 17.67
    watching.take(scored(21.0))
    assert not watching.settled()  # (20 + 12 + 21) / 3 = 17.67
    watching.take(scored(21.0))
    assert watching.settled()  # (12 + 21 + 21) / 3 = 18


def test_after_other_games_did_not_confirm_it_one_more_evaluation_must_come(tmp_path: Path) -> None:
    watching = monitor(tmp_path, stop_at_return=18.0, eval={"settled_evaluations": 2})
    watching.take(scored(20.0, 20.0))
    assert watching.settled()
    watching.refuse()
    assert not watching.settled()
    watching.take(scored(19.0))
    assert watching.settled()


def test_training_games_must_follow_if_they_are_asked(tmp_path: Path) -> None:
    settings = {"settled_evaluations": 1, "settled_training_return": 17.0}
    watching = monitor(tmp_path, stop_at_return=18.0, eval=settings)
    watching.take(scored(21.0))
    assert not watching.settled()  # none has ended yet
    watching.take(Report(actors=[ActorStats(episodes=[Episode(16.0, 10, 0.01)])]))
    assert not watching.settled()
    watching.take(Report(actors=[ActorStats(episodes=[Episode(18.0, 10, 0.01), Episode(-21.0, 10, 1.0)])]))
    assert watching.settled()  # (16 + 18) / 2 = 17; the third explores too much to count


def test_without_a_return_to_stop_at_nothing_settles(tmp_path: Path) -> None:
    watching = monitor(tmp_path, eval={"settled_evaluations": 1})
    watching.take(scored(100.0))
    assert not watching.settled()


def test_the_time_left_follows_from_the_speed_since_this_start(tmp_path: Path) -> None:
    watching = monitor(tmp_path, agent_steps=900, total_steps=1_000)
    _, shown = watching.take(Report())
    assert "eta_s" not in shown
    _, shown = watching.take(Report(actors=[ActorStats(agent_steps=50)]))
    spent = watching.wall_s
    assert shown["eta_s"] == pytest.approx(spent * 50 / 50, abs=0.5)
    assert (shown["agent_steps"], shown["total_steps"]) == (950, 1_000)


def test_what_is_not_known_is_not_shown(tmp_path: Path) -> None:
    _, shown = monitor(tmp_path).take(Report())
    assert not {"charts/episodic_return", "eval/mean_return", "actors/policy_lag_updates", "replay/fill"} & shown.keys()
    assert all(value is not None and math.isfinite(value) for value in shown.values())


def test_what_had_settled_before_a_stop_counts_after_it(tmp_path: Path) -> None:
    """Two evaluations of 0.9 and 1.1 before the stop; with a third one of 1.0 the mean of three reaches 1."""
    settings = {"stop_at_return": 1.0, "eval": {"settled_evaluations": 3, "settled_training_return": 0.5}}
    before = monitor(tmp_path, **settings)
    before.take(Report(actors=[ActorStats(agent_steps=1, episodes=[Episode(0.75, 3, 0.01)])]))
    before.take(Report(evaluations=[Evaluation(1, (0.8, 1.0)), Evaluation(2, (1.1,))]))
    after = monitor(tmp_path, **settings)
    after.set_state(json.loads(json.dumps(before.get_state())))
    assert after.get_state() == before.get_state()
    assert not after.settled()
    values, _ = after.take(Report(evaluations=[Evaluation(3, (1.0,))]))
    assert after.settled()
    assert values["charts/episodic_return"] == 0.75


def test_what_the_run_spent_in_earlier_processes_is_not_left_of_its_minutes(tmp_path: Path) -> None:
    watching = Monitor(maze_config(tmp_path, total_steps=10**12, minutes=2.0), 4, 0, 0, 0.0, ran_s=90.0)
    _, shown = watching.take(Report(actors=[ActorStats(agent_steps=5)]))
    assert shown["eta_s"] == pytest.approx(30.0, abs=1.0)
