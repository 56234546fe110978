from __future__ import annotations

import pytest

from actors.actor import ActorStats
from drqn_dist.training.monitor import PolicyLag
from drqn_dist.training.session import Report
from learner.learner import LearnerStats


def learnt(told_s: float, updates: int, new: int, wall_s: float = 1.0) -> LearnerStats:
    return LearnerStats(updates, new, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, wall_s=wall_s, told_s=told_s)


def acted(told_s: float, version: int) -> ActorStats:
    return ActorStats(agent_steps=1, weight_version=version, told_s=told_s)


def test_an_actor_is_compared_with_the_learner_of_the_same_moment() -> None:
    lag = PolicyLag()
    # 100 updates a second: 150 of them at 11.5 s, when the actor's version was 140.
    first = Report(learner=[learnt(11.0, 100, 100), learnt(12.0, 200, 100)], actors=[acted(11.5, 140)])
    assert lag.of(first) == pytest.approx(150 - 140)
    # No piece of the learner since: 230 updates at 12.3 s, 250 at 12.5 s.
    assert lag.of(Report(actors=[acted(12.3, 220), acted(12.5, 220)])) == pytest.approx((10 + 30) / 2)
    # Between the last piece and the next one of another pace.
    assert lag.of(Report(learner=[learnt(14.0, 600, 400, 2.0)], actors=[acted(13.0, 380)])) == pytest.approx(400 - 380)


def test_a_moment_before_the_first_piece_ended_lies_within_it() -> None:
    assert PolicyLag().of(Report(learner=[learnt(11.0, 100, 100)], actors=[acted(10.8, 70)])) == pytest.approx(80 - 70)
    # Not before it began.
    assert PolicyLag().of(Report(learner=[learnt(11.0, 100, 20)], actors=[acted(5.0, 70)])) == pytest.approx(80 - 70)


def test_a_learner_that_was_set_back_is_followed() -> None:
    lag = PolicyLag()
    lag.of(Report(learner=[learnt(11.0, 1_000, 100)], actors=[acted(11.0, 1_000)]))
    assert lag.of(Report(learner=[learnt(12.0, 300, 100)], actors=[acted(11.5, 240)])) == pytest.approx(10)


def test_there_is_no_lag_without_a_learner_or_without_actors() -> None:
    lag = PolicyLag()
    assert lag.of(Report(actors=[acted(1.0, 0)])) is None
    assert lag.of(Report(learner=[learnt(1.0, 5, 5)], actors=[ActorStats(told_s=1.0)])) is None
    assert lag.of(Report(actors=[acted(1.0, -1)])) == 5  # an actor without weights acts like those of no update
