"""Whole runs that go on with other settings or elsewhere, begin with another run's weights, or are only planned."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from drqn_dist.cli import main
from drqn_dist.config import TrainConfig, with_settings
from drqn_dist.errors import ConfigError, RunFolderError
from drqn_dist.experiments.run_folder import RunFolder, open_run
from drqn_dist.files import locked
from drqn_dist.metrics import read_metrics
from drqn_dist.training import train as training
from drqn_dist.training.train import train
from tests.runs import maze_config


def _only(root: Path) -> Path:
    (folder,) = root.iterdir()
    return folder


def _run(config: TrainConfig) -> RunFolder:
    train(config)
    return open_run(_only(Path(config.run_dir)))


def _inserted(run: RunFolder) -> int:
    newest = run.checkpoints.latest()
    assert newest is not None
    return sum(state["limiter"]["inserted_steps"] for state in newest.meta["replay"])


def _history(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "config.json").read_text())["history"]  # type: ignore[no-any-return]


CHANGES: dict[str, Any] = {
    "actors": 3,
    "total_steps": 1_300,
    "checkpoints_kept": 1,
    "learner.learning_rate": 0.0005,
    "learner.batch_windows": 4,
    "replay.capacity_steps": 1_000,
    "replay.samples_per_insert": 4.0,
    "actor.envs_per_actor": 1,
    "actor.epsilon_low": 0.1,
    "eval.episodes": 3,
}


def test_a_run_that_was_moved_goes_on_with_other_settings_and_says_and_keeps_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = maze_config(tmp_path / "old", total_steps=600)
    first = _run(old)
    before, inserted = first.read_summary(), _inserted(first)
    new = tmp_path / "new"
    new.mkdir()
    run = first.path.rename(new / "renamed")
    capsys.readouterr()
    main(["train", "--resume", str(run), *(f"--{name}={value}" for name, value in CHANGES.items())])
    said = capsys.readouterr().err
    for line in (
        "actors: 3, was 1",
        "learner.learning_rate: 0.0005, was 0.0001",
        "replay.samples_per_insert: 4.0, was 8.0",
        f"run_dir: {new}, was {tmp_path / 'old'}",
    ):
        assert line in said.splitlines()
    after = open_run(run)
    assert after.config == replace(with_settings(old, CHANGES), run_dir=str(new))
    assert after.first_config() == old
    (entry,) = _history(run)
    assert (entry["updates"], entry["agent_steps"]) == (before.updates, before.agent_steps)
    assert entry["changes"] == {
        name: {"old": was, "new": now}
        for name, was, now in [
            ("actors", 1, 3),
            ("total_steps", 600, 1_300),
            ("run_dir", str(tmp_path / "old"), str(new)),
            ("checkpoints_kept", 2, 1),
            ("learner.batch_windows", 8, 4),
            ("learner.learning_rate", 0.0001, 0.0005),
            ("replay.capacity_steps", 2_000, 1_000),
            ("replay.samples_per_insert", 8.0, 4.0),
            ("actor.envs_per_actor", 2, 1),
            ("actor.epsilon_low", 0.5, 0.1),
            ("eval.episodes", 2, 3),
        ]
    }
    assert list((tmp_path / "old").iterdir()) == []
    assert _only(new) == run
    summary = after.read_summary()
    assert 1_300 <= summary.agent_steps < 1_303
    assert summary.updates > before.updates
    assert _inserted(after) > inserted
    steps = [line["agent_steps"] for line in read_metrics(run)]
    assert steps == sorted(steps)
    assert [line["eval/episodes"] for line in read_metrics(run) if "eval/episodes" in line] == [2, 3]


def test_the_step_size_that_was_asked_for_is_the_one_that_trains(tmp_path: Path) -> None:
    """So small that nothing moves: float32 weights do not change by 1e-12."""
    first = _run(maze_config(tmp_path, total_steps=400))
    before = first.checkpoints.latest()
    train(with_settings(first.config, {"learner.learning_rate": 1e-12, "total_steps": 900}), resume=first.path)
    after = first.checkpoints.latest()
    assert before is not None
    assert after is not None
    assert after.updates > before.updates
    for name in before.tensors:
        if name.startswith("network."):
            torch.testing.assert_close(after.tensors[name], before.tensors[name], rtol=0, atol=1e-7)


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = _run(maze_config(tmp_path, total_steps=400, checkpoint_period_s=0.05))
    before, newest = run.checkpoints.paths()
    path = run.checkpoints.paths()[newest]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # of a weight's last bit
    path.write_bytes(content)
    capsys.readouterr()
    main(["train", "--resume", str(run.path), "--total-steps", "450"])
    said = capsys.readouterr().err
    (warning,) = caplog.messages
    assert warning.startswith(f"skipped a checkpoint: checkpoint {path} is damaged: its SHA-256 is ")
    assert f"a newer checkpoint could not be read, and is now {path.name}.unreadable" in said
    assert f"goes on from update {before:,} at " in said
    (entry,) = _history(run.path)
    assert entry["updates"] == before
    found = run.checkpoints.latest()
    assert found is not None
    assert found.updates > newest


def test_a_run_that_another_process_trains_is_refused_and_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(maze_config(tmp_path, total_steps=300))

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}

    before = files()
    monkeypatch.setattr(training, "ALONE_S", 0.1)
    more = replace(run.config, total_steps=600)
    with locked(run.path / "lock", 0.0), pytest.raises(RunFolderError, match="another process trains in"):
        train(more, resume=run.path)
    assert files() == before
    assert train(more, resume=run.path).agent_steps >= 600


def test_a_run_holds_its_folder_while_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    start = training._start_session

    def noted(config: TrainConfig, state: Any, folder: Path) -> Any:
        with pytest.raises(OSError, match="another process holds it"):
            locked(folder / "lock", 0.0)
        held.append(folder)
        return start(config, state, folder)

    monkeypatch.setattr(training, "_start_session", noted)
    run = _run(maze_config(tmp_path, total_steps=300))
    train(replace(run.config, total_steps=600), resume=run.path)
    assert held == [run.path, run.path]
    locked(run.path / "lock", 0.0).close()


def test_what_must_stay_is_refused_from_python_too_and_changes_nothing(tmp_path: Path) -> None:
    run = _run(maze_config(tmp_path, total_steps=300))
    before = (run.path / "config.json").read_bytes()
    with pytest.raises(ConfigError, match=r"--resume cannot change learner\.gamma from 0\.99 to 0\.5"):
        train(with_settings(run.config, {"learner.gamma": 0.5, "total_steps": 900}), resume=run.path)
    assert (run.path / "config.json").read_bytes() == before
    assert _history(run.path) == []


@pytest.mark.ray
def test_a_run_goes_on_in_other_modes_and_with_other_shards_and_never_counts_backwards(
    local_ray: None, tmp_path: Path
) -> None:
    run = _run(maze_config(tmp_path, total_steps=500))
    stops = [
        {"mode": "ray", "actors": 2, "replay.shards": 2, "checkpoint_period_s": 0.5},
        {"replay.shards": 1, "actors": 1},
        {"mode": "serial"},
    ]
    for number, changed in enumerate(stops, start=1):
        before, inserted = run.read_summary(), _inserted(run)
        config = with_settings(run.config, {**changed, "total_steps": before.agent_steps + 4_000})
        train(config, resume=run.path)
        run = open_run(run.path)
        after = run.read_summary()
        assert after.agent_steps >= before.agent_steps + 4_000
        assert after.updates > before.updates
        assert _inserted(run) >= inserted, "as of the last pulse"
        assert len(_history(run.path)) == number
        assert run.config == config
    lines = read_metrics(run.path)
    assert [line["agent_steps"] for line in lines] == sorted(line["agent_steps"] for line in lines)


MAZE = {
    "preset": "gridworld",
    "env.kwargs": '{"size": 4}',
    "mode": "serial",
    "actors": 1,
    "network.torso": "mlp",
    "network.torso-units": 8,
    "network.core-units": 16,
    "learner.device": "cpu",
    "learner.unroll-steps": 8,
    "learner.batch-windows": 8,
    "actor.envs-per-actor": 2,
    "actor.fragment-steps": 8,
    "replay.min-steps": 200,
    "replay.capacity-steps": 5_000,
    "eval.period-updates": None,
    "eval.episodes": 2,
    "minutes": None,
    "total-steps": 400,
}


def _flags(root: Path, **changes: Any) -> list[str]:
    settings = {
        **MAZE,
        "run-dir": root,
        **{name.replace("__", ".").replace("_", "-"): v for name, v in changes.items()},
    }
    return [f"--{name}={value}" for name, value in settings.items()]


def test_a_new_run_begins_with_another_runs_weights_and_counts_from_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["train", *_flags(tmp_path / "a")])
    source = open_run(_only(tmp_path / "a"))
    theirs = source.checkpoints.latest()
    assert theirs is not None
    capsys.readouterr()
    # Another maze, seed, loss and optimizer; and no updates, so that the weights can be compared.
    other = {"seed": 7, "env__kwargs": '{"size": 5}', "learner__optimizer": "rmsprop", "replay__min_steps": 5_000}
    main(["train", "--init-from", str(source.path), *_flags(tmp_path / "b", **other)])
    said = capsys.readouterr().err
    assert f"begins with the weights of {source.path.name} at update {theirs.updates:,}" in said
    assert "goes on from" not in said
    run = open_run(_only(tmp_path / "b"))
    summary, mine = run.read_summary(), run.checkpoints.latest()
    assert mine is not None
    assert (summary.updates, mine.meta["starts"]) == (0, 1)
    assert 400 <= summary.agent_steps < 402
    assert summary.weights_sha256 == source.read_summary().weights_sha256
    note = {"run": source.path.name, "update": theirs.updates, "weights_sha256": summary.weights_sha256}
    assert run.read_description()["init_from"] == note
    main(["train", "--resume", str(run.path), "--total-steps", "900", "--replay.min-steps", "200"])
    assert run.read_summary().updates > 0
    assert run.read_description()["init_from"] == note


@pytest.mark.ray
def test_all_roles_of_a_new_run_begin_with_another_runs_weights(local_ray: None, tmp_path: Path) -> None:
    source = _run(maze_config(tmp_path / "a", total_steps=400))
    far = {"min_steps": 200_000, "capacity_steps": 400_000}
    config = maze_config(tmp_path / "b", mode="ray", total_steps=300, replay=far)
    summary = train(config, init_from=source.path)
    assert summary.updates == 0
    assert summary.weights_sha256 == source.read_summary().weights_sha256
    assert summary.eval_updates == 0


def test_weights_that_do_not_fit_are_one_clear_line_and_exit_code_2_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _run(maze_config(tmp_path / "a", total_steps=300)).path
    capsys.readouterr()
    for extra in ([], ["--dry-run"]):
        with pytest.raises(SystemExit) as stopped:
            main(["train", "--init-from", str(source), *_flags(tmp_path / "b", network__core_units=17), *extra])
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "network.core_units is 16 there and 17 here" in line or "differs first in" in line
        assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("mode", ["serial", "ray"])
def test_a_dry_run_shows_what_a_run_takes_and_starts_and_writes_nothing(
    mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    children = psutil.Process().children(recursive=True)
    main(["train", "--dry-run", *_flags(tmp_path / "runs", mode=mode)])
    shown = capsys.readouterr()
    assert shown.err == ""
    rows = dict(re.findall(r"^  (\w.*?) {2,}([\d,.]+)$", shown.out, re.MULTILINE))
    learner = [f"learner: {part}" for part in ("training step", "network", "probe")]
    parts = ["replay", *learner, "actors", "processes", "learner: frame store"]
    assert list(rows) == [*parts, "together", "free", "checkpoints", "replay's journal"]
    assert "frame store on the learner's device: up to" in shown.out
    assert f"disk at most, at {tmp_path / 'runs'}" in shown.out
    assert list(tmp_path.iterdir()) == []
    assert psutil.Process().children(recursive=True) == children


def test_a_dry_run_refuses_what_a_start_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    huge = {"replay__capacity_bytes": 2**50, "replay__capacity_steps": 10**10}
    full = {"checkpoints_kept": 10_000, "network__torso_units": 4_096}
    for changes, message in ((huge, "MB of memory"), (full, "lower checkpoints_kept, free some, or choose")):
        for extra in (["--dry-run"], []):
            with pytest.raises(SystemExit) as stopped:
                main(["train", *_flags(tmp_path / "runs", **changes), *extra])
            assert stopped.value.code == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert message in line
            assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_hold_a_run_is_refused_also_by_a_dry_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for extra in (["--dry-run"], []):
        with pytest.raises(SystemExit) as stopped:
            main(["train", *_flags(tmp_path / "file" / "runs"), *extra])
        assert stopped.value.code == 2
        assert f"{tmp_path / 'file'} is no folder; choose another place with --run-dir" in capsys.readouterr().err


def test_a_dry_run_of_a_cluster_asks_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "--dry-run", *_flags(tmp_path, mode="ray", actors=None, address="nowhere:1")])
    shown = capsys.readouterr().out
    assert "1 actor(s) of 2 environment(s)" in shown
    assert "depend on its machines" in shown


def test_a_dry_run_of_a_run_that_goes_on_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _run(maze_config(tmp_path, total_steps=300))
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    capsys.readouterr()
    main(["train", "--resume", str(run.path), "--actors", "2", "--dry-run"])
    assert "2 actor(s)" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_a_run_that_has_done_all_its_steps_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _run(maze_config(tmp_path, total_steps=300))
    capsys.readouterr()
    train(run.config, resume=run.path)
    assert "all of its 300 steps are done; a larger --total-steps trains on" in capsys.readouterr().err
