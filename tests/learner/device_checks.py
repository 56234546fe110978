"""What must hold of a learner on any device. Tests without a GPU run these checks on the CPU, those in tests/gpu on
both, so that only the device differs. A GPU may add in another order every time, hence the tolerances; distances
count the optimizer's moments too, which a wrong gradient changes by as much as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch

from learner.frame_store import Staged
from learner.learner import Learner
from tests.fakes import FakePriorities
from tests.learner.preset_cases import Case, distance, eager, graphed, learner_on


def check_writes_are_seen(case: Case, device: str, tolerance: float = 0.0) -> None:
    """What is written into the store between two updates, in stream order, is what the next one reads: two learners on
    this device, one of which finds a store that was overwritten before and one whose store is right, train alike."""
    mine, other = (learner_on(case, device) for _ in range(2))
    for learner in (mine, other):
        for _ in range(2):
            learner.update()
    assert distance(trained(mine), trained(other)) <= tolerance
    kept = _contents(mine)
    for _ in range(3):
        _write(mine, [torch.zeros_like(x) for x in kept])  # as other fragments would
        for learner in (mine, other):
            batch = learner.feed.next()
            if learner is mine:
                learner.step(batch)
        _write(mine, kept)
        mine.state.load_tensors(other.state.to_tensors(), other.state.updates)
        mine.update()
        other.update()
        assert distance(trained(mine), trained(other)) <= tolerance


def _contents(learner: Learner) -> list[torch.Tensor]:
    store = learner.feed.store
    return [x.clone() for x in (store._frames, store._actions, store._rewards, store._states)]


def _write(learner: Learner, contents: list[torch.Tensor]) -> None:
    frames, actions, rewards, states = contents
    rows, state_rows = torch.arange(len(frames)), torch.arange(len(states))
    learner.feed.store.write(Staged(rows, frames, actions, rewards, state_rows, states))


def trained(learner: Learner) -> list[torch.Tensor]:
    return [t.detach().cpu().clone() for t in learner.state.trained_tensors()]


def check_stop_and_resume(
    case: Case, device: str, place: Literal["device", "host"] = "device", tolerance: float = 0.0
) -> None:
    """Save, load into a learner that has trained on other weights, go on: as if nothing had happened."""
    straight, stopped, resumed = (learner_on(case, device, place) for _ in range(3))
    for _ in range(6):
        straight.update()
    for _ in range(3):
        stopped.update()
    for _ in range(3):  # it has a graph of its own by then, and stands where the other one stopped
        resumed.update()
    with torch.no_grad():
        for tensor in (*resumed.state.trained_tensors(), *resumed.state.target.parameters()):
            tensor.fill_(0.5)
    tensors, meta = stopped.save()
    resumed.load(tensors, meta)
    assert resumed.state.updates == 3
    for name, tensor in resumed.state.to_tensors().items():
        assert torch.equal(tensor, tensors[name]), name
    for _ in range(3):
        resumed.update()
    assert resumed.state.updates == straight.state.updates == 6
    assert distance(trained(resumed), trained(straight)) <= tolerance
    losses = [learner.take_stats().td_loss for learner in (straight, resumed)]
    assert np.isfinite(losses).all()


def check_everything_leaves_the_device(case: Case, device: str, place: Literal["device", "host"] = "device") -> None:
    """Weights are published at their versions, priorities go back to their ids, statistics are those of the updates,
    targets are copied and the learning rate falls, all between two runs of the same function."""
    learner_config = replace(
        case.config.learner,
        publish_period_updates=2,
        target_period_updates=3,
        learning_rate_halving_updates=2,
        probe_period_updates=2,
    )
    replay = replace(case.config.replay, prioritized=True)
    case = replace(case, config=replace(case.config, learner=learner_config, replay=replay))
    learner, plain = learner_on(case, device, place), learner_on(case, "cpu")
    versions: dict[int, Any] = {}
    for update in range(1, 7):
        learner.update()
        plain.update()
        rate = learner.state.optimizer.param_groups[0]["lr"]
        assert abs(float(rate) / learner_config.learning_rate_at(update - 1) - 1) < 1e-6
        if update % 3 == 0:
            assert (learner.state.target.to_vector() == learner.state.network.to_vector()).all()
        if update % 2 == 0:
            versions[update] = learner.state.network.to_vector()
            learner._outbox.flush()
            snapshot = learner._publisher.latest(update - 1)
            assert snapshot is not None
            assert snapshot.version == update
            assert (snapshot.vector == versions[update]).all()
        learner.state.load_tensors(plain.state.to_tensors(), update)
    learner.save()  # waits for all that is under way
    mine, theirs = learner._priorities, plain._priorities
    assert isinstance(mine, FakePriorities)
    assert isinstance(theirs, FakePriorities)
    assert len(mine.updates) == len(theirs.updates) == 6
    for (ids, values), (other_ids, others) in zip(mine.updates, theirs.updates, strict=True):
        assert ids.tolist() == other_ids.tolist()
        np.testing.assert_allclose(values, others, rtol=1e-3, atol=1e-5)
    stats, expected = learner.take_stats(), plain.take_stats()
    assert stats.updates == 6
    assert stats.churn == pytest.approx(expected.churn, abs=0.1)  # near a tie rounding decides
    for name in ("td_loss", "td_error", "q_value", "grad_norm", "staleness_first", "staleness_last"):
        np.testing.assert_allclose(getattr(stats, name), getattr(expected, name), rtol=1e-3, atol=1e-5)


def check_new_weights_act_at_once(case: Case, device: str, tolerance: float = 0.0) -> None:
    """Weights that come in from outside are what the next update trains, also where it is a recorded graph."""
    mine, other = (learner_on(case, device) for _ in range(2))
    for _ in range(2):
        mine.update()
        other.update()
    snapshot = mine._publisher.latest(-1)
    assert snapshot is not None
    start = replace(snapshot, vector=0.5 * snapshot.vector)
    for learner, step in ((mine, graphed), (other, eager)):
        learner.state.network.load_vector(start.vector)
        learner.state.copy_target()
        assert (learner.state.network.to_vector() == start.vector).all()
        assert (learner.state.target.to_vector() == start.vector).all()
        for moment in learner.state.trained_tensors()[len(list(learner.state.network.parameters())) :]:
            moment.zero_()
        step(learner, learner.feed.next())
    assert distance(trained(mine), trained(other)) <= tolerance
