"""What a local Ray leaves behind, and what it clears away. Ray itself: test_cli_train."""

from __future__ import annotations

import os
from pathlib import Path

from drqn_dist.run.local_ray import _locked, _remove_leftovers


def test_folders_of_killed_runs_are_removed_and_those_in_use_stay(tmp_path: Path) -> None:
    folders = {name: tmp_path / f"drqn-ray-{name}" for name in ("killed", "running", "starting", "other")}
    for folder in folders.values():
        (folder / "session").mkdir(parents=True)
    locks = {name: _locked(folders[name]) for name in ("killed", "running")}
    os.close(locks["killed"])  # as the kernel does when a process dies
    folders["other"].rename(tmp_path / "not-ours")
    (tmp_path / "not-ours" / "lock").touch()
    _remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"drqn-ray-running", "drqn-ray-starting", "not-ours"}
    os.close(locks["running"])
