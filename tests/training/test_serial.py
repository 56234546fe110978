from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.actor import Actor
from drqn_dist import checkpoint
from drqn_dist.config import TrainConfig
from drqn_dist.envs.make import env_spec
from drqn_dist.errors import CheckpointError, ConfigError, EnvNotRestoredError
from drqn_dist.experiments.run_folder import Summary
from drqn_dist.interfaces import FragmentInbox, WindowDraws
from drqn_dist.metrics import read_metrics
from drqn_dist.state import State
from drqn_dist.training.memory import plan_frame_store
from drqn_dist.training.serial import SerialSession, next_multiple, notes_on
from drqn_dist.training.session import Report, Saved
from drqn_dist.training.train import train
from learner.frame_store import StorePlan
from learner.learner import Learner
from replay_server.make import LocalSource
from tests.replay_server.validity import can_push
from tests.runs import maze_config


@contextmanager
def session(config: TrainConfig, restored: Saved | None = None) -> Iterator[SerialSession]:
    running = SerialSession(config, restored)
    try:
        yield running
    finally:
        running.close()


def run_until(running: SerialSession, updates: int) -> Report:
    report = Report()
    while running.learner.state.updates < updates:
        running.turn(report)
    return report


def trained(root: Path, name: str, **changes: Any) -> tuple[Summary, list[dict[str, Any]]]:
    """Summary and lines of evaluations; both without what depends on time."""
    summary = train(maze_config(root / name, total_steps=700, eval={"period_updates": 30}, **changes))
    (folder,) = (root / name).iterdir()
    lines = [{tag: value for tag, value in line.items() if tag.startswith("eval/")} for line in read_metrics(folder)]
    return replace(summary, wall_s=0.0), [line for line in lines if line]


def test_the_same_seed_gives_the_same_weights_and_figures_bit_for_bit_and_another_seed_does_not(tmp_path: Path) -> None:
    first, first_evaluations = trained(tmp_path, "a", seed=1)
    second, second_evaluations = trained(tmp_path, "b", seed=1, log_period_s=0.05)
    other, _ = trained(tmp_path, "c", seed=2)
    assert first.updates > 60
    assert first == second
    assert first_evaluations == second_evaluations
    assert [line["eval/updates"] for line in first_evaluations[:2]] == [30, 60]
    assert other.weights_sha256 != first.weights_sha256


@pytest.mark.parametrize("core", ["gru", "lstm"])
def test_save_load_and_go_on_equals_never_having_stopped(core: str, tmp_path: Path) -> None:
    # Published after every update, because loading publishes as well.
    config = maze_config(tmp_path, learner={"publish_period_updates": 1}, network={"core": core})
    with session(config) as never_stopped:
        run_until(never_stopped, 60)
        expected = never_stopped.learner.state.to_tensors()
    with session(config) as stopped:
        run_until(stopped, 25)
        saved = stopped.save()
        checkpoint.save(tmp_path / "checkpoint.safetensors", saved.tensors, saved.meta)
        tensors, meta = checkpoint.load(tmp_path / "checkpoint.safetensors")
        spec = env_spec(config.env)
        source = LocalSource(stopped.replay, config.learner.batch_windows)
        plan = plan_frame_store(config, spec)
        stopped.learner = Learner(config, spec, source, stopped.replay, stopped.publisher, plan)
        stopped.learner.load(tensors, meta["learner"])
        stopped.replay.set_state(meta["replay"][0])
        run_until(stopped, 60)
        found = stopped.learner.state.to_tensors()
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"network": {"core": "lstm"}, "learner": {"publish_period_updates": 3, "probe_period_updates": 4}},
        {"replay": {"capacity_steps": 400, "initial_priority": "largest"}, "actors": 2},
        {"replay": {"prioritized": False}, "eval": {"period_updates": 10}},
    ],
)
def test_a_run_that_stops_and_is_resumed_equals_one_that_never_stopped(changes: dict[str, Any], tmp_path: Path) -> None:
    """Through files alone: checkpoint and journal. Three stops, one of them before the first update."""
    config = maze_config(tmp_path, **changes)
    with session(config) as never_stopped:
        run_until(never_stopped, 90)
        expected, facts = never_stopped.save().tensors, never_stopped.save().meta
        stored = [f.payload for f in never_stopped.replay._store._fragments.values()]
    saved, folder = None, tmp_path / "run"
    for updates in (0, 31, 60, 90):
        with closing(SerialSession(config, saved, folder)) as part:
            for _ in range(7 if updates == 0 else 0):
                part.turn(Report())
            run_until(part, updates)
            saved = part.save()
            found = [f.payload for f in part.replay._store._fragments.values()]
        checkpoint.save(tmp_path / "c.safetensors", saved.tensors, saved.meta)
        saved = Saved(*checkpoint.load(tmp_path / "c.safetensors"))
    assert saved is not None
    assert saved.tensors.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(saved.tensors[name], expected[name])]
    assert different == []
    assert saved.meta == json.loads(json.dumps(facts))
    assert found == stored


def test_the_replay_ratio_holds_within_2_percent_also_over_a_resume_without_a_burst(tmp_path: Path) -> None:
    config = maze_config(tmp_path, total_steps=10**6)
    per_update = config.learner.batch_windows * config.learner.unroll_steps
    with session(config) as first:
        run_until(first, 250)
        saved = first.save()
    with session(config, saved) as resumed:
        assert resumed.learner.state.updates == 250
        report = Report()
        while not can_push(resumed.replay) or resumed.replay.stats().stored_steps < config.replay.min_steps:
            resumed.turn(report)
        # Filling again was free: at most the slack that the limiter allows was made up for.
        assert resumed.learner.state.updates - 250 <= 2 * config.rate_tolerance_steps * 8 / per_update
        run_until(resumed, 500)
        stats = resumed.replay.stats()
    assert stats.sampled_steps == 500 * per_update
    assert stats.samples_per_insert == pytest.approx(config.replay.samples_per_insert, rel=0.02)


@pytest.mark.parametrize("restored", [True, False])
def test_a_resumed_session_goes_on_counting_and_begins_new_incarnations_only_if_it_must(
    restored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(actor: Actor, state: State) -> None:
        raise EnvNotRestoredError("row 0 did not come back")

    if not restored:
        monkeypatch.setattr(Actor, "set_state", refuse)
    config = maze_config(tmp_path)
    with session(config) as first:
        run_until(first, 5)
        saved = first.save()
    assert saved.meta["incarnation"] == 0
    with session(config, saved) as second:
        assert second.agent_steps == saved.meta["agent_steps"] > config.replay.min_steps
        assert second.save().meta["incarnation"] == (0 if restored else 1)
        assert ("actors begin new games: row 0 did not come back" in second.advance(0.0).notes) is not restored
        assert second.replay.stats().inserted_steps == saved.meta["replay"][0]["limiter"]["inserted_steps"]
        again = second.save()
    names = [name for name in saved.tensors if restored or not name.startswith("serial.")]
    assert all(torch.equal(again.tensors[name], saved.tensors[name]) for name in names)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    with session(maze_config(tmp_path)) as first:
        saved = first.save()
    with pytest.raises(CheckpointError, match="belongs to another network"):
        SerialSession(maze_config(tmp_path, network={"core_units": 17}), saved)


def test_an_actors_burst_that_nobody_could_take_away_is_refused(tmp_path: Path) -> None:
    # 2 environments x 8 steps may come at once; 8 windows x 8 steps / 8 samples per insert = 8 satisfy the limiter.
    with pytest.raises(ConfigError, match=r"rate_tolerance_steps \(15\).*2 environments of 8 \+ 0 steps, 16"):
        SerialSession(maze_config(tmp_path, replay={"rate_tolerance_steps": 15}))
    with session(maze_config(tmp_path, replay={"rate_tolerance_steps": 16})) as tight:
        run_until(tight, 50)
    # Of each environment a fragment, and the three other steps of a push period of four.
    rare = {"push_period_steps": 4}
    with pytest.raises(ConfigError, match=r"rate_tolerance_steps \(21\).*2 environments of 8 \+ 3 steps, 22"):
        SerialSession(maze_config(tmp_path, actor=rare, replay={"rate_tolerance_steps": 21}))
    with session(maze_config(tmp_path, actor=rare, replay={"rate_tolerance_steps": 22})) as tight:
        run_until(tight, 50)


def test_advance_ends_at_an_evaluation_and_when_asked_to_stop(tmp_path: Path) -> None:
    with session(maze_config(tmp_path, total_steps=10**6, eval={"period_updates": 20})) as running:
        report = running.advance(60.0)
        assert [evaluation.version for evaluation in report.evaluations] == [20]
        assert sum(stats.agent_steps for stats in report.actors) == running.agent_steps
        assert report.replay is not None
        asked = iter([False, False, True])
        report = running.advance(60.0, lambda: next(asked))
        assert sum(stats.agent_steps for stats in report.actors) == 2 * 2  # two turns of two environments


def test_the_first_report_alone_says_where_the_frame_store_lies(tmp_path: Path) -> None:
    with session(maze_config(tmp_path, total_steps=10**6)) as running:
        (note,) = running.advance(0.0).notes
        assert note.startswith("frame store on the learner's device: ")
        assert running.advance(0.0).notes == []


class _Counting:
    """A source that counts the fragments which come along with draws."""

    def __init__(self, source: LocalSource) -> None:
        self._source, self.unheld = source, 0

    def sample(self, batches: int, inbox: FragmentInbox) -> WindowDraws | None:
        draws = self._source.sample(batches, inbox)
        self.unheld += 0 if draws is None else len(draws.unheld)
        return draws


def test_a_frame_store_that_holds_a_part_of_the_replay_trains_the_same_weights(tmp_path: Path) -> None:
    config = maze_config(tmp_path)
    spec = env_spec(config.env)
    plan = plan_frame_store(config, spec)
    fragments = 20  # of up to 250
    part = plan.capacity._replace(rows=fragments * 9, states=fragments, fragments=2 * fragments)

    def weights(chosen: StorePlan) -> tuple[dict[str, torch.Tensor], int]:
        with session(config) as running:
            source = _Counting(LocalSource(running.replay, config.learner.batch_windows))
            running.learner = Learner(config, spec, source, running.replay, running.publisher, chosen)
            run_until(running, 60)
            return running.learner.state.to_tensors(), source.unheld

    everything, none = weights(plan)
    little, came = weights(replace(plan, capacity=part, fresh_limit=4, complete=False))
    assert none == 0
    assert came > 60, "old fragments come again as they are drawn"
    assert all(torch.equal(everything[name], little[name]) for name in everything)


def test_several_actors_take_turns(tmp_path: Path) -> None:
    with session(maze_config(tmp_path, actors=3)) as running:
        for _ in range(6):
            running.turn(Report())
        assert [actor.take_stats().agent_steps for actor in running.actors] == [4, 4, 4]


def test_a_run_on_a_gpu_says_that_it_does_not_repeat_bit_for_bit_and_one_on_a_cpu_says_nothing(tmp_path: Path) -> None:
    assert notes_on(torch.device("cpu")) == []
    (note,) = notes_on(torch.device("cuda", 1))
    assert "cuda:1" in note
    assert "not repeat bit for bit" in note
    with session(maze_config(tmp_path)) as running:
        assert running.advance(0.0).events == []


def test_close_may_be_called_twice(tmp_path: Path) -> None:
    running = SerialSession(maze_config(tmp_path))
    running.evaluate(0)
    running.close()
    running.close()


def test_the_next_multiple_lies_above() -> None:
    assert [next_multiple(done, 10) for done in (0, 9, 10, 11)] == [10, 10, 20, 20]
    assert next_multiple(5, None) == -1
    assert np.sign(next_multiple(0, None)) == -1
