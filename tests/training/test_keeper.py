from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.runs import until

RUN = """
import os, signal, sys, time
from pathlib import Path
from drqn_dist.errors import RayDiedError
from drqn_dist.training.keeper import Word

word = Word()
here = Path(os.environ["HERE"])
starts = here / "starts"
with open(starts, "a") as file:
    file.write(" ".join(sys.argv[1:]) + f" ran {word.ran_s > 0}\\n")
count = len(starts.read_text().splitlines())
plan = os.environ["PLAN"].split(",")[count - 1]
if "saved" in plan:
    word.saved(here / "run", 1000 + count)
if "orphan" in plan:
    import subprocess
    print("orphan", subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL).pid, flush=True)
if "killed" in plan:
    os.kill(os.getpid(), signal.SIGKILL)
if "ray" in plan:
    sys.exit(RayDiedError.exit_code)
if "waits" in plan:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    (here / "waits").touch()
    time.sleep(600)
if "silent" not in plan:
    word.ends()
sys.exit(int(plan.split()[-1]))
"""
"""In place of `drqn_dist.cli`: notes how it was started, then does what the plan says for this start."""
KEEPER = """
import sys
from drqn_dist.training import keeper
sys.exit(keeper.keep(["--seed", "3"]))
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `python` that runs RUN whatever module it is asked for."""
    (tmp_path / "run.py").write_text(RUN)
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {tmp_path / "run.py"} "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("HERE", str(tmp_path))
    return tmp_path


def start(here: Path, plan: str) -> subprocess.Popen[str]:
    script = f"import sys; sys.executable = {str(here / 'python')!r}\n{KEEPER}"
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PLAN": plan},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(here: Path, plan: str) -> tuple[int, str, list[str]]:
    keeper = start(here, plan)
    _, said = keeper.communicate(timeout=60)
    return keeper.returncode, said, (here / "starts").read_text().splitlines()


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_a_run_that_ends_in_order_ends_its_keeper_alike(stand_in: Path, code: int) -> None:
    assert ended(stand_in, f"saved {code}") == (code, "", ["train --seed 3 ran True"])


@pytest.mark.parametrize(("how", "told"), [("killed", "its process ended abruptly (SIGKILL)"), ("ray", "its Ray died")])
def test_a_run_that_ends_abruptly_goes_on_from_what_is_safe(stand_in: Path, how: str, told: str) -> None:
    code, said, starts = ended(stand_in, f"saved {how},saved {how},0")
    assert code == 0
    assert starts == ["train --seed 3 ran True", *[f"train --resume {stand_in}/run ran True"] * 2]
    first, second = said.splitlines()
    assert first == (
        f"drqn-dist: the run failed (failure 1 within 3600 s), starting it again in 0 s: {told}, perhaps because "
        "memory ran out; it goes on from update 1,001"
    )
    assert second.endswith("; it goes on from update 1,002")


def test_a_run_that_rays_code_ended_with_an_exit_code_goes_on_too(stand_in: Path) -> None:
    code, said, starts = ended(stand_in, "saved silent 1,saved 0")
    assert code == 0
    assert said == (
        "drqn-dist: the run failed (failure 1 within 3600 s), starting it again in 0 s: its Ray died, perhaps because "
        "memory ran out; it goes on from update 1,001\n"
    )
    assert len(starts) == 2


def test_a_run_that_dies_again_while_it_starts_is_started_once_more(stand_in: Path) -> None:
    code, said, starts = ended(stand_in, "saved killed,killed,2,0")
    assert (code, len(starts)) == (0, 4)
    assert starts[1:] == [f"train --resume {stand_in}/run ran True"] * 3
    assert "it could not start; it goes on from update 1,001" in said


def test_a_run_that_had_saved_nothing_is_not_started_again(stand_in: Path) -> None:
    code, said, starts = ended(stand_in, "killed")
    assert (code, len(starts)) == (1, 1)
    assert said == (
        "drqn-dist: error: the run has ended: its process ended abruptly (SIGKILL), perhaps because memory ran out; "
        "nothing was saved\n"
    )


def test_what_a_dead_run_left_behind_is_ended_before_it_goes_on(stand_in: Path) -> None:
    keeper = start(stand_in, "saved orphan killed,0")
    out, _ = keeper.communicate(timeout=60)
    assert keeper.returncode == 0
    assert not psutil.pid_exists(int(out.split()[-1]))


def test_signals_are_handed_on_and_a_run_that_was_told_to_stop_is_not_started_again(stand_in: Path) -> None:
    keeper = start(stand_in, "saved waits")
    until((stand_in / "waits").exists, "the run to begin")
    keeper.send_signal(signal.SIGTERM)
    keeper.communicate(timeout=60)
    assert keeper.returncode == 0
    assert len((stand_in / "starts").read_text().splitlines()) == 1


def test_a_run_whose_keeper_is_killed_stops_in_order(stand_in: Path) -> None:
    keeper = start(stand_in, "saved waits")
    until((stand_in / "waits").exists, "the run to begin")
    (run,) = psutil.Process(keeper.pid).children(recursive=True)
    keeper.kill()
    keeper.communicate(timeout=60)
    until(lambda: not run.is_running() or run.status() == psutil.STATUS_ZOMBIE, "the run to end", 20)


def test_a_run_that_dies_again_and_again_is_given_up(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAN", "")
    script = (
        f"import sys; sys.executable = {str(stand_in / 'python')!r}\n"
        "from drqn_dist.training import keeper\n"
        "real = keeper.decide\n"
        "def at_once(*given):\n"
        "    import dataclasses\n"
        "    return dataclasses.replace(real(*given), delay_s=0.0)\n"
        "keeper.decide = at_once\n"
        "sys.exit(keeper.keep([]))\n"
    )
    plan = ",".join(["saved killed"] * 7)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PLAN": plan},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert len((stand_in / "starts").read_text().splitlines()) == 6
    last = done.stderr.splitlines()[-1]
    assert "the run failed too often (failure 6 within 3600 s, 5 are allowed)" in last
    assert last.endswith(f"is safe in {stand_in}/run/checkpoints; go on with drqn-dist train --resume {stand_in}/run")


def test_the_keeper_itself_is_light() -> None:
    script = "import sys, drqn_dist.training.keeper; print(sorted({'torch', 'ray', 'numpy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
