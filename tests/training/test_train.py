from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import drqn_dist
from actors.evaluator import Evaluation
from drqn_dist import checkpoint
from drqn_dist.config import TrainConfig
from drqn_dist.envs.make import env_spec
from drqn_dist.errors import CheckpointError, ConfigError, DrqnError, RoleFailedError, RunFolderError
from drqn_dist.experiments.run_folder import Summary, create_run, open_run
from drqn_dist.metrics import read_metrics
from drqn_dist.training import stop as stop_module
from drqn_dist.training import train as train_module
from drqn_dist.training.serial import SerialSession
from drqn_dist.training.session import Report, Saved
from drqn_dist.training.stop import StopRequest
from drqn_dist.training.train import train, weights_sha256
from tests.runs import SUMMARY_KEYS, maze_config


@dataclass(frozen=True)
class Done:
    config: TrainConfig
    folder: Path
    summary: Summary


def _train(config: TrainConfig) -> Done:
    summary = train(config)
    (folder,) = Path(config.run_dir).iterdir()
    return Done(config, folder, summary)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A run to its last step with evaluations and checkpoints on the way."""
    root = tmp_path_factory.mktemp("runs")
    return _train(
        maze_config(root, total_steps=600, log_period_s=0.05, checkpoint_period_s=0.01, eval={"period_updates": 20})
    )


def test_the_run_stops_at_total_steps_and_says_so(done: Done) -> None:
    # Two environments step at once, and a step that only resets one does not count.
    assert 600 <= done.summary.agent_steps < 600 + 2
    assert done.summary.frames == done.summary.agent_steps
    assert done.summary.stopped_by == "total_steps"


def test_summary_json_has_exactly_the_promised_keys(done: Done) -> None:
    written = json.loads((done.folder / "summary.json").read_text())
    assert written.keys() == SUMMARY_KEYS
    assert written == vars(done.summary)
    assert re.fullmatch("[0-9a-f]{64}", written["weights_sha256"])


def test_the_summary_names_the_update_whose_weights_were_evaluated(done: Done) -> None:
    assert done.summary.eval_updates == done.summary.updates
    assert done.summary.eval_mean_return is not None


@pytest.mark.parametrize("final_evaluation_ends", [False, True])
def test_the_summary_has_no_figures_of_other_weights_than_its_own(final_evaluation_ends: bool, tmp_path: Path) -> None:
    class Session(SerialSession):
        def evaluate(self, *arguments: Any, **options: Any) -> Evaluation:
            if not final_evaluation_ends:
                raise KeyboardInterrupt  # as a signal does
            return super().evaluate(*arguments, **options)

    config = maze_config(tmp_path, total_steps=600, eval={"period_updates": 20})
    with closing(Session(config)) as session:
        folder = create_run(config, [])
        summary = train_module._Run(config, env_spec(config.env), session, folder, None, StopRequest()).run()
    assert summary.updates > 20
    assert next(line["eval/updates"] for line in read_metrics(folder.path) if "eval/updates" in line) == 20
    figures = (summary.eval_mean_return, summary.eval_std_return, summary.eval_updates)
    if final_evaluation_ends:
        assert summary.eval_updates == summary.updates
        assert None not in figures
    else:
        assert figures == (None, None, None)


def test_the_last_checkpoint_holds_the_weights_of_the_summary(done: Done) -> None:
    newest = open_run(done.folder).checkpoints.latest()
    assert newest is not None
    assert newest.updates == done.summary.updates
    assert weights_sha256(newest.tensors) == done.summary.weights_sha256
    assert newest.meta["agent_steps"] == done.summary.agent_steps


def test_checkpoints_are_written_on_the_way_and_only_the_newest_are_kept(done: Done) -> None:
    assert len(list((done.folder / "checkpoints").iterdir())) == done.config.checkpoints_kept == 2


def test_metrics_have_steps_frames_time_and_known_tags(done: Done) -> None:
    lines = read_metrics(done.folder)
    documented = set(re.findall(r"^    (\w+/\w+)", drqn_dist.metrics.__doc__ or "", re.MULTILINE))
    documented |= {f"memory/{role}_mb" for role in ("driver", "learner", "replay", "evaluator", "actor")}
    tags = {tag for line in lines for tag in line} - {"agent_steps", "frames", "wall_s"}
    # The last line's documented form is time/actor_<part>.
    assert {tag for tag in tags if not tag.startswith("time/actor_")} <= documented
    assert {"losses/td_loss", "replay/fill", "eval/mean_return", "charts/epsilon", "time/updates"} <= tags
    steps = [line["agent_steps"] for line in lines]
    assert steps == sorted(steps)
    assert steps[-1] == done.summary.agent_steps


def test_tensorboard_files_are_written(done: Done) -> None:
    (events,) = (done.folder / "tensorboard").glob("events.out.tfevents.*")
    assert events.stat().st_size > 1_000


def test_evaluations_come_every_period_and_once_more_at_the_end_on_other_games(done: Done) -> None:
    at = [line["eval/updates"] for line in read_metrics(done.folder) if "eval/updates" in line]
    assert at == [*range(20, done.summary.updates + 1, 20), done.summary.updates]


def test_a_resumed_run_goes_on_from_updates_and_agent_steps_at_the_same_ratio(done: Done) -> None:
    config = replace(done.config, total_steps=1_400, checkpoint_period_s=120.0)
    resumed = train(config, resume=done.folder)
    assert [path.name for path in done.folder.parent.iterdir()] == [done.folder.name]
    assert 1_400 <= resumed.agent_steps < 1_402
    assert resumed.wall_s > done.summary.wall_s
    # 8 samples per insert over 8 windows of 8 steps: one update per 8 steps; the replay has its steps back.
    slack = config.rate_tolerance_steps / 8
    expected = (1_400 - 600) / 8
    assert resumed.updates - done.summary.updates == pytest.approx(expected, abs=slack)
    assert [line["agent_steps"] for line in read_metrics(done.folder)][-1] == resumed.agent_steps


def test_a_final_evaluation_shows_how_far_it_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _train(maze_config(tmp_path, total_steps=300, log_period_s=0.01, eval={"episodes": 3}))
    _, _, final = capsys.readouterr().err.partition("final evaluation: 3 episodes")
    lines = [line for line in final.splitlines() if "games played" in line]
    steps = [int(re.findall(r"game steps ([\d,]+)", line)[0].replace(",", "")) for line in lines]
    assert len(steps) > 1
    assert steps == sorted(steps)
    assert any("games played 0" in line for line in lines)


def test_a_run_stops_at_a_return(tmp_path: Path) -> None:
    # Any evaluation reaches a return of 0; five of them must.
    stopped = _train(maze_config(tmp_path, total_steps=10**6, stop_at_return=0.0, eval={"period_updates": 10}))
    assert stopped.summary.stopped_by == "stop_at_return"
    assert stopped.summary.updates in range(50, 55)  # as many updates as one turn allows
    assert stopped.summary.eval_mean_return is not None
    assert stopped.summary.eval_updates is not None


def test_a_return_is_confirmed_in_other_games_each_time_and_in_as_many_as_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played: list[tuple[int, int]] = []
    evaluate = SerialSession.evaluate

    def poor_at_first(session: SerialSession, seed: int, *arguments: Any) -> Evaluation:
        (summary,) = tmp_path.glob("*/summary.json")
        saved = json.loads(summary.read_text())
        assert (saved["stopped_by"], saved["updates"]) == ("unfinished", session.learner.state.updates)
        evaluation = evaluate(session, seed, *arguments)
        played.append((seed, len(evaluation.scores)))
        return replace(evaluation, scores=(-1.0,)) if len(played) < 3 else evaluation

    monkeypatch.setattr(SerialSession, "evaluate", poor_at_first)
    config = maze_config(
        tmp_path,
        seed=7,
        total_steps=10**6,
        stop_at_return=0.0,
        eval={"period_updates": 10, "final_episodes": 3, "settled_evaluations": 1},
    )
    stopped = _train(config)
    assert stopped.summary.stopped_by == "stop_at_return"
    assert played == [(8, 3), (9, 3), (10, 3)]
    assert stopped.summary.updates in range(30, 45)
    monkeypatch.setattr(
        SerialSession,
        "evaluate",
        lambda session, seed, *arguments: played.append((seed, 3)) or evaluate(session, seed, *arguments),
    )
    train(replace(config, total_steps=stopped.summary.agent_steps + 10), resume=stopped.folder)
    assert played[3] == (12, 3), "nor does a run that goes on play them again"


def test_a_run_that_cannot_be_cured_saves_what_was_learnt_and_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = SerialSession.advance

    def fails(session: SerialSession, *arguments: Any) -> Report:
        report = real(session, *arguments)
        if session.learner.state.updates > 20:
            raise RoleFailedError("actor 0 failed too often")
        return report

    monkeypatch.setattr(SerialSession, "advance", fails)
    with pytest.raises(RoleFailedError, match="actor 0 failed too often"):
        train(maze_config(tmp_path, total_steps=10**6, checkpoint_period_s=3_600.0))
    (folder,) = tmp_path.iterdir()
    newest = open_run(folder).checkpoints.latest()
    assert newest is not None
    assert newest.updates > 20
    assert f"go on with drqn-dist train --resume {folder}" in capsys.readouterr().err


def test_a_run_that_is_stopped_before_it_went_on_says_what_is_safe(
    done: Done, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "_start_session", interrupted)
    run = open_run(done.folder)
    config, newest = run.config, max(run.checkpoints.paths())
    with pytest.raises(KeyboardInterrupt):
        train(config, resume=done.folder)
    said = capsys.readouterr().err
    assert f"stopped; the newest checkpoint, of update {newest:,}, is safe in {done.folder}" in said
    assert "nothing was written" not in said
    with pytest.raises(KeyboardInterrupt):
        train(replace(config, run_dir=str(done.folder / "new")))
    assert "nothing was written" in capsys.readouterr().err


def test_only_periodic_checkpoints_do_not_wait_for_a_learner_that_is_away(tmp_path: Path) -> None:
    waits = []

    class Session(SerialSession):
        def save(self, patience_s: float = math.inf) -> Saved:
            waits.append(patience_s)
            return super().save(patience_s)

    config = maze_config(tmp_path, total_steps=600, checkpoint_period_s=0.05)
    with closing(Session(config)) as session:
        train_module._Run(config, env_spec(config.env), session, create_run(config, []), None, StopRequest()).run()
    assert set(waits[:-1]) == {0.0}
    assert waits[-1] == train_module.PATIENCE_S == 120.0


def test_weights_that_cannot_be_saved_at_the_end_are_said_with_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = SerialSession.save

    def diverged(session: SerialSession, patience_s: float = math.inf) -> Saved:
        saved = real(session)
        if patience_s:
            return replace(saved, tensors={name: tensor * math.nan for name, tensor in saved.tensors.items()})
        return saved

    monkeypatch.setattr(SerialSession, "save", diverged)
    with pytest.raises(DrqnError, match="no longer finite"):
        train(maze_config(tmp_path, total_steps=600, checkpoint_period_s=0.05))
    assert "is safe in " in capsys.readouterr().err.splitlines()[-1]


def test_a_signal_that_comes_while_weights_are_saved_to_be_confirmed_ends_the_run(tmp_path: Path) -> None:
    stop = StopRequest()

    class Session(SerialSession):
        def save(self, patience_s: float = math.inf) -> Saved:
            stop.requested = True
            return super().save()

        def evaluate(self, *arguments: Any, **options: Any) -> Evaluation:
            raise AssertionError("no games are played after a signal")

    config = maze_config(tmp_path, total_steps=10**6, stop_at_return=0.0, eval={"period_updates": 10})
    with closing(Session(config)) as session:
        run = train_module._Run(config, env_spec(config.env), session, create_run(config, []), None, stop)
        assert run.run().stopped_by == "signal"


def test_a_run_stops_after_minutes_however_seldom_it_reports(tmp_path: Path) -> None:
    began = time.monotonic()
    stopped = _train(maze_config(tmp_path, total_steps=10**9, minutes=0.02, log_period_s=3_600.0))
    assert stopped.summary.stopped_by == "minutes"
    assert 60 * 0.02 <= time.monotonic() - began < 30


def _refuse(
    error: type[Exception], message: str, config: Callable[[], TrainConfig], resume: Path | None = None
) -> None:
    with pytest.raises(error, match=message):
        train(config(), resume)


def test_a_run_folder_without_a_checkpoint_cannot_be_resumed(tmp_path: Path, done: Done) -> None:
    (tmp_path / "config.json").write_bytes((done.folder / "config.json").read_bytes())
    _refuse(CheckpointError, "holds no checkpoint to go on from", lambda: done.config, tmp_path)
    _refuse(RunFolderError, "is no run folder", lambda: done.config, tmp_path / "nowhere")


def test_a_checkpoint_that_is_damaged_or_of_another_network_is_refused(tmp_path: Path, done: Done) -> None:
    (tmp_path / "config.json").write_bytes((done.folder / "config.json").read_bytes())
    (tmp_path / "checkpoints").mkdir()
    newest = sorted((done.folder / "checkpoints").iterdir())[-1]
    copy = tmp_path / "checkpoints" / newest.name
    copy.write_bytes(newest.read_bytes()[:-100])
    _refuse(CheckpointError, "truncated", lambda: done.config, tmp_path)
    copy.write_bytes(newest.read_bytes())
    description = json.loads((tmp_path / "config.json").read_text())
    description["config"]["network"]["core"] = "lstm"
    (tmp_path / "config.json").write_text(json.dumps(description))
    _refuse(CheckpointError, "belongs to another network", lambda: open_run(tmp_path).config, tmp_path)


@pytest.mark.parametrize("mode", ["serial", "ray"])
def test_what_cannot_run_is_refused_before_anything_is_started_or_left(mode: str, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for message, changes in [
        ("rate_tolerance_steps .* too small", {"replay": {"rate_tolerance_steps": 7}}),
        ("no environment|unknown|not registered|Environment", {"env": {"id": "drqn_dist/Nowhere-v0", "kwargs": {}}}),
        ("learner.device is 'gpu'", {"learner": {"device": "gpu"}}),
        ("learner.device is 'cuda:99'", {"learner": {"device": "cuda:99"}}),
        ("of memory", {"replay": {"capacity_steps": 10**10, "capacity_bytes": 2**50}}),
    ]:
        _refuse(ConfigError, message, lambda changes=changes: maze_config(root, mode=mode, **changes))  # type: ignore[misc]
    assert not root.exists()


def test_a_capacity_that_evicts_windows_before_they_can_be_drawn_is_refused_with_the_numbers(tmp_path: Path) -> None:
    # 8 + 2 - 1 steps lie in up to 3 fragments of 4; those of 6 environments arrive between: 2 * 6 + 1 of them.
    changes = {"actor": {"envs_per_actor": 3, "fragment_steps": 4}, "learner": {"unroll_steps": 4, "n_step": 6}}
    needed = (2 * 6 + 1) * 4
    with pytest.raises(
        ConfigError, match=rf"3 fragments of 4 steps.*6 environments.*13 fragments = {needed} steps.*51"
    ):
        maze_config(tmp_path, actors=2, replay={"capacity_steps": needed - 1, "min_steps": 1}, **changes)
    config = maze_config(tmp_path, actors=2, replay={"capacity_steps": needed, "min_steps": 1}, **changes)
    assert config.window.most_fragments == 3


def test_a_checkpoint_can_be_read_back_by_name(done: Done) -> None:
    tensors, meta = checkpoint.load(sorted((done.folder / "checkpoints").iterdir())[-1])
    kept = {"learner", "replay", "incarnation", "agent_steps", "turn", "serial"}
    assert meta.keys() == kept | {"wall_s", "starts", "final_seed", "monitor"}
    assert "network.core.rnn.weight_ih_l0" in tensors or any(name.startswith("network.") for name in tensors)


def test_a_second_signal_stops_at_once_unless_it_comes_with_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    monkeypatch.setattr(stop_module.time, "monotonic", lambda: clock)
    stop = StopRequest()
    stop(2, None)
    clock += stop_module.SAME_SIGNAL_S
    stop(2, None)
    assert stop.requested
    clock += 0.1
    with pytest.raises(KeyboardInterrupt):
        stop(2, None)
    with stop.at_once(), pytest.raises(KeyboardInterrupt):
        StopRequest.__call__(stop, 2, None)
