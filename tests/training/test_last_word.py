from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys
from pathlib import Path
from drqn_dist.training.last_word import LastWord

with LastWord() as last_word:
    if "saved" in sys.argv:
        last_word.saved(Path(sys.argv[1]), 1234)
    if "abruptly" in sys.argv:
        os._exit(7)
"""


def end(folder: Path, *how: str) -> tuple[int, str]:
    """Exit code and stderr, once both processes have closed it."""
    command = [sys.executable, "-c", SCRIPT, str(folder), *how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


def test_a_process_that_ends_abruptly_says_what_is_safe(tmp_path: Path) -> None:
    code, said = end(tmp_path, "saved", "abruptly")
    assert code == 7
    (line,) = said.splitlines()
    assert line.startswith("drqn-dist: error: the run's process ended abruptly: its Ray died, or it was killed")
    assert f"update 1,234, is safe in {tmp_path}/checkpoints; go on with drqn-dist train --resume {tmp_path}" in line


def test_a_process_that_ends_abruptly_before_its_first_checkpoint_says_that_nothing_was_saved(tmp_path: Path) -> None:
    _, said = end(tmp_path, "abruptly")
    assert said.strip().endswith("; nothing was saved")


@pytest.mark.parametrize("saved", [True, False])
def test_a_process_that_ends_in_order_says_nothing_here(saved: bool, tmp_path: Path) -> None:
    assert end(tmp_path, *["saved"] * saved) == (0, "")
