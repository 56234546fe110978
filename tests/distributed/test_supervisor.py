"""A run over processes. What happens when they die is in tests/chaos; signals and a Ray of its own: test_cli_train."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import ActorDiedError, ActorUnavailableError

from actors.evaluator import Evaluation, Played
from drqn_dist.distributed import supervisor
from drqn_dist.distributed.role import Role, RoleKind
from drqn_dist.distributed.supervisor import RaySession
from drqn_dist.envs.make import env_spec
from drqn_dist.errors import CheckpointError, RoleFailedError
from drqn_dist.experiments.run_folder import open_run
from drqn_dist.metrics import read_metrics
from drqn_dist.network.q_network import QNetwork
from drqn_dist.training.session import Report, Saved
from drqn_dist.training.train import train, weights_sha256
from learner.train_state import load_network
from tests.runs import maze_config, role_processes, until

pytestmark = pytest.mark.ray


def test_a_run_trains_evaluates_checkpoints_and_leaves_no_process(local_ray: None, tmp_path: Path) -> None:
    config = maze_config(
        tmp_path,
        mode="ray",
        actors=2,
        total_steps=8_000,
        checkpoint_period_s=0.5,
        eval={"period_updates": 20, "episodes": 4},
        learner={"batches_per_draw": 2},
        replay={"shards": 2},
    )
    summary = train(config)
    assert summary.stopped_by == "total_steps"
    assert summary.agent_steps >= 8_000
    assert summary.eval_mean_return is not None
    (folder,) = tmp_path.iterdir()
    newest = open_run(folder).checkpoints.latest()
    assert newest is not None
    assert (newest.updates, weights_sha256(newest.tensors)) == (summary.updates, summary.weights_sha256)

    lines = read_metrics(folder)
    evaluated = [line["eval/updates"] for line in lines if "eval/updates" in line]
    assert len(evaluated) >= 2, "one beside training, one at the end"
    assert evaluated[-1] == summary.updates, "the last one plays the saved weights"
    ratios = [line["replay/samples_per_insert"] for line in lines if "replay/samples_per_insert" in line]
    assert ratios[-1] == pytest.approx(config.replay.samples_per_insert, rel=0.1)

    most = {tag: max(line.get(tag, -1) for line in lines) for line in lines for tag in line}
    assert 0 <= most["queues/pushes"] <= config.actor.max_pushes_in_flight
    assert 0 <= most["queues/priorities"] <= 16 * 2
    assert most["queues/draws"] <= 1
    assert most["queues/updates"] == 0, "no GPU"
    memory = {tag: value for tag, value in most.items() if tag.startswith("memory/")}
    assert set(memory) == {f"memory/{role}_mb" for role in ("driver", "learner", "replay", "evaluator", "actor")}
    assert all(50 < value < 3_000 for value in memory.values()), memory

    until(lambda: not role_processes(), "the run's processes to end")
    assert ray.is_initialized(), "a Ray that was there before stays"


def test_a_checkpoint_of_another_network_is_refused_and_leaves_no_process(local_ray: None, tmp_path: Path) -> None:
    done = train(maze_config(tmp_path, total_steps=300))
    assert done.stopped_by == "total_steps"
    (folder,) = tmp_path.iterdir()
    other = maze_config(tmp_path, mode="ray", network={"core_units": 17})
    newest = open_run(folder).checkpoints.latest()
    assert newest is not None
    with pytest.raises(CheckpointError, match="belongs to another network"):
        RaySession(other, Saved(newest.tensors, newest.meta))
    until(lambda: not role_processes(), "the run's processes to end")


def test_a_run_that_settles_ends_with_the_weights_confirmed_and_counts_what_came_meanwhile(
    local_ray: None, tmp_path: Path
) -> None:
    games = {"period_updates": 20, "episodes": 2, "final_episodes": 200, "settled_evaluations": 2}
    summary = train(maze_config(tmp_path, mode="ray", total_steps=10**9, stop_at_return=0.0, eval=games))
    assert summary.stopped_by == "stop_at_return"
    (folder,) = tmp_path.iterdir()
    newest = open_run(folder).checkpoints.latest()
    assert newest is not None
    assert (newest.updates, weights_sha256(newest.tensors)) == (summary.updates, summary.weights_sha256)
    assert summary.eval_updates == summary.updates
    assert newest.meta["agent_steps"] == summary.agent_steps


def test_the_next_evaluation_is_due_after_the_weights_that_the_last_one_played(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It was due at update 40, began at 55 and ended at 70: the next one is due at 60, not at once for 40 again."""
    session = RaySession.__new__(RaySession)
    session._config = maze_config(tmp_path, mode="ray", eval={"period_updates": 20})
    session._report, session._next_eval, session._updates = Report(), 40, 70
    evaluator = Role("evaluator", RoleKind.EVALUATOR)
    session._under_way = {"call": (evaluator, "evaluate")}
    monkeypatch.setattr(ray, "get", lambda ref: Evaluation(55, (1.0,)))
    session._collect("call")
    assert session._next_eval == 60
    assert [evaluation.version for evaluation in session._report.evaluations] == [55]


def test_close_may_be_called_twice(local_ray: None, tmp_path: Path) -> None:
    session = RaySession(maze_config(tmp_path, mode="ray"))
    session.close()
    session.close()
    until(lambda: not role_processes(), "the run's processes to end")


def test_what_was_saved_is_evaluated_and_nobody_trains_meanwhile(local_ray: None, tmp_path: Path) -> None:
    config = maze_config(tmp_path, mode="ray", total_steps=10**9, eval={"final_episodes": 400, "envs": 4})
    with closing(RaySession(config)) as session:
        until(lambda: sum(stats.new_updates for stats in session.advance(0.5).learner) > 0, "updates")
        saved = session.save()
        network = QNetwork(config.network, env_spec(config.env), config.env.stack_frames)
        load_network(network, saved.tensors, "network.")
        seen: list[Played] = []
        evaluation = session.evaluate(3, seen.append)
        assert seen == sorted(seen)
        assert seen[-1].steps > 0
        assert (len(evaluation.scores), evaluation.version) == (400, int(saved.meta["learner"]["updates"]))
        assert evaluation.weights is not None
        np.testing.assert_array_equal(evaluation.weights.vector, network.to_vector())
        again = session.save()
        assert all(torch.equal(again.tensors[name], tensor) for name, tensor in saved.tensors.items())
        until(lambda: sum(stats.new_updates for stats in session.advance(0.5).learner) > 0, "updates again")


def test_what_is_saved_is_of_one_moment(local_ray: None, tmp_path: Path) -> None:
    """What the replay counts as sampled is what the learner has trained on, and what it had drawn ahead: two draws that
    wait and one on its way, each of as many batches as there are shards."""
    config = maze_config(
        tmp_path,
        mode="ray",
        actors=2,
        total_steps=10**9,
        learner={"batches_per_draw": 1},
        replay={"shards": 2, "samples_per_insert": 16.0},
    )
    steps = config.learner.batch_windows * config.learner.unroll_steps
    with closing(RaySession(config)) as session:
        until(lambda: sum(stats.new_updates for stats in session.advance(0.5).learner) > 0, "updates")
        ahead = []
        for _ in range(4):
            trained = session.save()
            sampled = sum(state["limiter"]["sampled_steps"] for state in trained.meta["replay"])
            ahead.append(sampled // steps - trained.meta["learner"]["updates"])
            session.advance(0.7)
    assert all(0 <= batches <= 3 * config.batches_per_draw for batches in ahead), ahead


def test_a_learner_that_stays_away_is_saved_another_time() -> None:
    """Its node left, and no other one has room: neither a checkpoint nor the run's end may wait for ever."""
    session = RaySession.__new__(RaySession)
    session._learner, session._roles, session._replay = Role("learner", RoleKind.LEARNER), [], []
    session._replay_states, session._incarnations, session.agent_steps = [], [3], 90
    session._saved = before = Saved({"network.a": torch.ones(1)}, {"learner": {"updates": 7}, "agent_steps": 50})
    turns = []
    session._turn = lambda roles, seconds: turns.append(seconds)  # type: ignore[method-assign]
    saved = session.save(0.0)
    assert not turns
    assert saved.tensors is before.tensors
    assert saved.meta == {"learner": {"updates": 7}, "replay": [], "incarnation": 3, "agent_steps": 90}
    session.save(0.01)
    assert turns


def test_a_role_that_failed_too_often_does_not_do_so_again_while_the_run_is_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An actor with two more calls unanswered; the learner takes a while to answer."""
    dead, answer, looks = ["run", "run", "pulse"], {"learner": "state"}, iter(range(100))

    def get(ref: object, timeout: float | None = None) -> object:
        if ref in dead:
            raise ActorDiedError()
        return {"network.a": torch.ones(1)}, answer

    monkeypatch.setattr(supervisor.ray, "get", get)
    monkeypatch.setattr(supervisor.ray, "wait", lambda refs, **_: ([r for r in refs if r in dead], []))
    monkeypatch.setattr(supervisor, "RAY", SimpleNamespace(wait=lambda *_, **__: ([1] if next(looks) > 3 else [], [])))
    monkeypatch.setattr(supervisor, "living_nodes", set)
    session = RaySession.__new__(RaySession)
    session._report, session._failed, session._saved, session._hang_s = Report(), None, None, 20.0
    session._ray = SimpleNamespace(check=list)  # type: ignore[assignment]
    now = session._looked_s = time.monotonic()
    actor = Role("actor 0", RoleKind.ACTOR, seen_s=now, failures=[(now, None)] * 5)
    learner = Role("learner", RoleKind.LEARNER, begun=True, seen_s=now)
    learner.handle = SimpleNamespace(save=SimpleNamespace(remote=lambda: "saved"))
    session._learner, session._replay, session._roles = learner, [], [learner, actor]
    session._replay_states, session._incarnations, session.agent_steps = [], [3], 90
    session._under_way = {"run": (actor, "run"), "pulse": (actor, "pulse")}
    actor.under_way.update(run=1, pulse=1)
    with pytest.raises(RoleFailedError, match="failed too often"):
        session._turn([], 0.01)
    assert session.save(10.0).meta["learner"] is answer
    assert next(looks) > 4


def test_a_role_that_ray_refuses_again_and_again_is_told_of_once_and_asked_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def breaks(_: object) -> None:
        raise ActorUnavailableError("it is restarting", b"x" * 16)

    monkeypatch.setattr(supervisor.ray, "get", breaks)
    session = RaySession.__new__(RaySession)
    session._report = Report()
    now = time.monotonic()
    replay = Role("replay", RoleKind.REPLAY, started_s=now, seen_s=now)
    delays = []
    for _ in range(50):
        replay.seen_s = time.monotonic()
        replay.under_way["begin"] = 1
        session._under_way = {"call": (replay, "begin")}
        session._collect("call")
        delays.append(replay.not_before_s - time.monotonic())
    assert delays[0] < 0.21
    assert 4.9 < delays[-1] <= 5.0
    (told,) = session._report.events
    assert told.startswith("replay does not begin: ")
