"""Policy churn. Staleness: test_whole_path."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from learner.probe import Probe, churn
from tests.learner.bench import bench

NOTHING: Any = None


def test_churn_by_hand() -> None:
    before, after = torch.tensor([[0, 1, 1], [2, 2, 0]]), torch.tensor([[0, 0, 1], [1, 1, 1]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    # Of four trained steps the second and the fourth have another action.
    assert churn(before, after, mask) == 0.5


def test_churn_is_what_an_update_changes_in_windows_of_the_batch_before() -> None:
    trained = bench(3, learner={"probe_period_updates": 1, "learning_rate": 0.05, "unroll_steps": 8})
    config, learner = trained.config, trained.learner
    probe = Probe(config, learner.state.network, NOTHING)
    windows = [read.windows for read in trained.batches()]
    trained.update()
    assert math.isnan(learner.take_stats().churn), "nothing was watched before the first update"
    for watched, other in ((windows[0], windows[1]), (windows[1], windows[2])):
        before, before_other = probe.greedy(watched), probe.greedy(other)
        trained.update()
        expected = churn(before, probe.greedy(watched), watched.mask)
        assert learner.take_stats().churn == pytest.approx(expected)
        assert 0 < expected != churn(before_other, probe.greedy(other), other.mask)


def test_without_a_period_nothing_is_measured() -> None:
    trained = bench(3, learner={"probe_period_updates": None})
    trained.update(3)
    stats = trained.learner.take_stats()
    assert all(math.isnan(value) for value in (stats.churn, stats.staleness_first, stats.staleness_last))
