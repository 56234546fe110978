from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import drqn_dist
from drqn_dist.config import TrainConfig, with_settings
from drqn_dist.errors import RunFolderError
from drqn_dist.experiments.run_folder import (
    RunFolder,
    Summary,
    create_run,
    machine_description,
    open_run,
    versions,
)
from drqn_dist.presets import preset
from tests.runs import SUMMARY_KEYS

SUMMARY = Summary(
    agent_steps=10,
    frames=40,
    updates=3,
    wall_s=1.5,
    eval_mean_return=None,
    eval_std_return=None,
    eval_updates=None,
    weights_sha256="ab",
    stopped_by="minutes",
)


def _config(run_dir: Path, **changes: object) -> TrainConfig:
    return dataclasses.replace(preset("pong-cpu"), run_dir=str(run_dir), **changes)  # type: ignore[arg-type]


def test_the_folder_is_named_after_environment_preset_seed_and_time(tmp_path: Path) -> None:
    run = create_run(_config(tmp_path / "a" / "runs", seed=7), ["drqn-dist", "train"])
    env, name, seed, stamp = run.path.name.split("__")
    assert (env, name, seed) == ("ALE-Pong-v5", "pong-cpu", "7")
    assert len(stamp) == len("20261122-130906")
    assert run.path.parent == tmp_path / "a" / "runs"


def test_no_environment_or_preset_name_can_leave_the_folder(tmp_path: Path) -> None:
    env = dataclasses.replace(preset("pong-cpu").env, id="../../my module:Env__x-v0")
    run = create_run(_config(tmp_path, env=env, preset="../p"), [])
    assert run.path.parent == tmp_path
    assert run.path.name.startswith("my-module-Env-x-v0__p__0__")


def test_runs_that_start_in_the_same_second_get_folders_of_their_own(tmp_path: Path) -> None:
    paths = {create_run(_config(tmp_path), []).path for _ in range(4)}
    assert len(paths) == 4


def test_config_json_holds_what_the_run_was_and_opens_again(tmp_path: Path) -> None:
    config = _config(tmp_path, stop_at_return=18.0)
    run = create_run(config, ["/somewhere/bin/drqn-dist", "train", "--seed", "1"])
    description = json.loads((run.path / "config.json").read_text())
    assert description["command_line"] == ["drqn-dist", "train", "--seed", "1"]
    assert {"python", "drqn-dist", "torch", "ray", "gymnasium", "ale-py"} <= description["versions"].keys()
    assert description["machine"]["logical_cores"] == os.cpu_count()
    assert description["machine"]["memory_bytes"] > 0
    assert open_run(run.path) == run
    assert run.checkpoints.folder == run.path / "checkpoints"
    assert run.checkpoints.kept == config.checkpoints_kept


NVIDIA_SMI = """#!/bin/sh
[ "$*" = "--query-gpu=name,driver_version --format=csv,noheader --id=1" ] && echo "NVIDIA T4, 550.54.15"
"""


def test_the_gpu_is_named_by_its_driver_without_opening_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text(NVIDIA_SMI)
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    found = machine_description()
    assert (found["gpu"], found["gpu_driver"]) == ("NVIDIA T4", "550.54.15")
    assert not torch.cuda.is_initialized()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine_description()["gpu"] is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    command.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert machine_description()["gpu"] is None


def _described(run: RunFolder) -> dict[str, Any]:
    description: dict[str, Any] = json.loads((run.path / "config.json").read_text())
    return description


def test_what_is_changed_on_the_way_is_kept_beside_what_holds_now(tmp_path: Path) -> None:
    first = _config(tmp_path, minutes=10.0)
    run = create_run(first, ["drqn-dist", "train"])
    assert _described(run)["history"] == []
    second = with_settings(first, {"minutes": 20.0, "actors": 3, "learner.learning_rate": 0.002})
    run, lines = run.go_on(second, 40, 1_000, ["/somewhere/bin/drqn-dist", "train", "--actors", "3"])
    rate = first.learner.learning_rate
    assert lines[:2] == ["actors: 3, was 1", "minutes: 20.0, was 10.0"]
    assert lines[2].startswith(f"learner.learning_rate: 0.002, was {rate}")
    third = with_settings(second, {"minutes": 30.0})
    run, _ = run.go_on(third, 90, 2_000, ["drqn-dist"])
    one, two = _described(run)["history"]
    assert (one["updates"], one["agent_steps"]) == (40, 1_000)
    assert one["command_line"] == ["drqn-dist", "train", "--actors", "3"]
    assert one["changes"] == {
        "actors": {"old": 1, "new": 3},
        "minutes": {"old": 10.0, "new": 20.0},
        "learner.learning_rate": {"old": rate, "new": 0.002},
    }
    assert "versions" not in one
    assert one["when"][:2] == "20"
    assert two["changes"] == {"minutes": {"old": 20.0, "new": 30.0}}
    assert open_run(run.path) == run
    assert (run.config, run.first_config()) == (third, first)
    assert _described(run)["command_line"] == ["drqn-dist", "train"], "of the first start"


def test_a_start_that_changes_nothing_notes_where_it_goes_on(tmp_path: Path) -> None:
    run = create_run(_config(tmp_path), [])
    before = _described(run)
    assert run.go_on(run.config, 1, 2, ["x"]) == (run, [])
    (entry,) = _described(run)["history"]
    assert (entry["updates"], entry["agent_steps"], entry["changes"]) == (1, 2, {})
    assert _described(run) == before | {"history": [entry]}
    assert run.resumed_at() == [2]


def test_a_start_that_changes_nothing_needs_no_room_on_the_disk(tmp_path: Path) -> None:
    run = create_run(_config(tmp_path), [])
    (run.path / "config.json.tmp").mkdir()  # where the new one would be written first
    again, (line,) = run.go_on(run.config, 1, 2, ["x"])
    assert again == run
    assert line.startswith(f"that the run goes on here is not in its history: could not write {run.path}")
    assert run.resumed_at() == []


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_revision_of_a_checkout_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drqn_dist, "__file__", str(tmp_path / "drqn_dist" / "__init__.py"))
    assert versions()["drqn-dist"] == drqn_dist.__version__

    def git(*arguments: str) -> str:
        alone = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, env=alone, capture_output=True, text=True, check=True).stdout.strip()

    git("init")
    assert versions()["drqn-dist"] == drqn_dist.__version__, "nothing is committed"
    (tmp_path / "drqn_dist").mkdir()
    (tmp_path / "drqn_dist" / "code.py").write_text("1")
    (tmp_path / "results").write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    clean = f"{drqn_dist.__version__}+g{git('rev-parse', '--short=7', 'HEAD')}"
    assert versions()["drqn-dist"] == clean
    (tmp_path / "results").write_text("2")
    assert versions()["drqn-dist"] == clean, "results are no code"
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert versions()["drqn-dist"] == clean, "variables of a hook"
    (tmp_path / "drqn_dist" / "new.py").write_text("2")
    assert versions()["drqn-dist"] == f"{clean}.dirty"


def test_other_versions_are_noted(tmp_path: Path) -> None:
    run = create_run(_config(tmp_path), [])
    description = _described(run)
    here = description["versions"]["torch"]
    description["versions"] |= {"torch": "1.0", "gone": "2"}
    (run.path / "config.json").write_text(json.dumps(description))
    _, lines = run.go_on(run.config, 1, 2, [])
    assert lines == [f"torch: {here}, was 1.0", "gone: None, was 2"]
    (entry,) = _described(run)["history"]
    assert entry["changes"] == {}
    assert entry["versions"] == {"torch": {"old": "1.0", "new": here}, "gone": {"old": "2", "new": None}}
    assert _described(run)["versions"]["torch"] == here


def test_a_run_of_an_earlier_version_without_a_history_goes_on(tmp_path: Path) -> None:
    run = create_run(_config(tmp_path), [])
    description = _described(run)
    del description["history"]
    (run.path / "config.json").write_text(json.dumps(description))
    assert open_run(run.path).read_description()["history"] == []
    assert open_run(run.path).first_config() == run.config
    run.go_on(dataclasses.replace(run.config, minutes=1.0), 1, 2, [])
    assert len(_described(run)["history"]) == 1


@pytest.mark.parametrize("history", ["3", '"x"', '[{"changes": {"nothing": {"old": 1}}}]', "[3]"])
def test_a_damaged_history_is_a_clear_error(history: str, tmp_path: Path) -> None:
    run = create_run(_config(tmp_path), [])
    text = json.dumps(_described(run)).replace('"history": []', f'"history": {history}')
    (run.path / "config.json").write_text(text)
    with pytest.raises(RunFolderError, match="damaged"):
        run.first_config()
    with pytest.raises(RunFolderError, match="damaged"):
        run.resumed_at()


def test_a_history_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    run = create_run(_config(tmp_path), [])
    before = (run.path / "config.json").read_bytes()
    (run.path / "config.json.tmp").mkdir()  # where the new one would be written first
    with pytest.raises(RunFolderError, match=r"could not write .*config\.json"):
        run.go_on(dataclasses.replace(run.config, minutes=1.0), 1, 2, [])
    assert (run.path / "config.json").read_bytes() == before


def test_whose_weights_a_run_began_with_is_noted(tmp_path: Path) -> None:
    assert "init_from" not in _described(create_run(_config(tmp_path), []))
    note = {"run": "other", "update": 3, "weights_sha256": "ab"}
    run = create_run(_config(tmp_path), [], note)
    run.go_on(dataclasses.replace(run.config, minutes=1.0), 1, 2, [])
    assert _described(run)["init_from"] == note


def test_the_summary_has_the_keys_that_others_build_on(tmp_path: Path) -> None:
    run = create_run(_config(tmp_path), [])
    run.write_summary(SUMMARY)
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary.keys() == SUMMARY_KEYS
    assert sorted(p.name for p in run.path.iterdir()) == ["config.json", "summary.json"]


def test_a_run_folder_that_cannot_be_made_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="choose another place with --run-dir"):
        create_run(_config(tmp_path / "file" / "runs"), [])
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failure_leaves_no_run_folder(tmp_path: Path) -> None:
    # The folder's name is longer than file systems allow, which shows only after its parents were made.
    config = _config(tmp_path / "new" / "runs", preset="p" * 250)
    with pytest.raises(RunFolderError, match="too long"):
        create_run(config, [])
    assert list((tmp_path / "new" / "runs").iterdir()) == []


def test_a_summary_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"could not write .*summary\.json"):
        RunFolder(tmp_path / "gone", TrainConfig()).write_summary(SUMMARY)


@pytest.mark.parametrize("text", ["", "[]", '{"config": {"sed": 1}}', '{"config": 3}', "{}"])
def test_a_damaged_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RunFolderError, match="damaged or of another version"):
        open_run(tmp_path)


def test_what_a_config_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"config": {}}')
    with pytest.raises(RunFolderError, match=r"damaged or of another version: it lacks versions, machine$"):
        open_run(tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is no run folder"):
        open_run(tmp_path)
