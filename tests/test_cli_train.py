"""`drqn-dist train` as a user types it: mistakes, signals, a full disk."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from drqn_dist.cli import main
from drqn_dist.experiments.run_folder import open_run
from drqn_dist.training.train import weights_sha256
from tests.runs import until

_FLAGS = {
    "preset": "gridworld",
    "env.kwargs": '{"size": 4}',
    "network.torso-units": 16,
    "network.core-units": 16,
    "learner.batch-windows": 8,
    "learner.unroll-steps": 8,
    "actor.envs-per-actor": 2,
    "actor.fragment-steps": 8,
    "replay.min-steps": 200,
    "replay.capacity-steps": 5_000,
    "eval.period-updates": None,
    "eval.episodes": 2,
    "log-period-s": 0.2,
    "minutes": None,
}
TINY = [f"--{name}={value}" for name, value in _FLAGS.items()]
FAKE = "tests.envs.fakes:drqn_test/Echo-v0"


@pytest.mark.parametrize("mode", ["serial", "ray"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "drqn_dist/GridWrld-v0"], "GridWrld"),
        (["--env", "ALE/Pnog-v5", "--env.kwargs", "{}"], "Pong"),
        (["--env", "no_such_module:Thing-v0"], "no_such_module"),
        (["--env", "Pendulum-v1", "--env.kwargs", "{}"], "Discrete"),
        (["--env", FAKE, "--env.kwargs", '{"observation": "camera"}'], "an image"),
        (["--env", FAKE, "--env.kwargs", '{"observation": "hwc"}', "--network.torso", "nature"], "6"),
        (["--network.torso-units", "0"], "network.torso_units is 0"),
        (["--actor.envs-per-actor", "-4"], "actor.envs_per_actor is -4"),
        (["--network.core-units", "99999999"], "network.core_units is 99999999"),
        (["--network.torso-units", "65536", "--network.core-units", "65536"], "MB of memory"),
        (["--replay.capacity-steps", "12", "--replay.min-steps", "1"], "does not fit a replay of 12 steps"),
        (["--replay.capacity-steps", "39", "--replay.min-steps", "1"], "windows would be evicted"),
        (["--replay.min-steps", "6000"], "replay.min_steps (6,000) exceeds replay.capacity_steps (5,000)"),
        (["--replay.rate-tolerance-steps", "1"], "replay.rate_tolerance_steps (1) is too small"),
        (["--replay.capacity-steps", str(10**10), "--replay.capacity-bytes", str(2**50)], "MB of memory"),
        (["--run-dir", "/proc/runs"], "choose another place with --run-dir"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2_and_leaves_nothing(
    mode: str,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if mode == "ray" and arguments[0] == "--run-dir":
        pytest.skip("starts a whole Ray; the serial case is the same code")
    with pytest.raises(SystemExit) as stopped:
        main(["train", *TINY, "--mode", mode, *arguments])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("drqn-dist: error: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_under_a_file_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        main(["train", *TINY, "--mode", "serial", "--run-dir", "file/runs"])
    assert stopped.value.code == 2
    assert "cannot create a run folder under file/runs" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("mode", ["serial", pytest.param("ray", marks=pytest.mark.ray)])
def test_an_environment_that_raises_ends_the_run_with_its_name_and_the_traceback_behind(
    mode: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if mode == "ray":
        request.getfixturevalue("local_ray")
    fragile = ["--env", "tests.envs.fakes:drqn_test/Fragile-v0", "--env.kwargs", "{}", "--run-dir", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        main(["train", *TINY, "--mode", mode, "--actors", "2", *fragile])
    assert stopped.value.code == 1
    message, _, traceback = capsys.readouterr().err.partition("drqn-dist: error: ")[2].partition("\n")
    assert "Fragile-v0 raised ValueError: the game broke; environment 0 of 2, step 2 of episode 2" in message
    assert "actor 0" in message or (mode == "ray" and "actor 1" in message)
    assert "action " in message
    assert "Traceback" in traceback
    assert "in step" in traceback
    assert 'raise ValueError("the game broke")' in traceback


class Command:
    """`drqn-dist train` in a process group of its own, as a terminal starts it."""

    def __init__(self, root: Path, *arguments: str) -> None:
        self.root = root / "runs"
        self.temporary = Path(
            tempfile.mkdtemp(prefix="t", dir="/tmp")
        )  # short: a socket's path must not exceed 107 bytes
        self._log = open(root / "stderr", "w+")  # noqa: SIM115 (closed by close)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "drqn_dist.cli", "train", *arguments],
            stderr=self._log,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(self.temporary)},
        )
        self._seen: set[psutil.Process] = set()

    @property
    def stderr(self) -> str:
        self._log.seek(0)
        return self._log.read()

    @property
    def folder(self) -> Path:
        (folder,) = self.root.iterdir()
        return folder

    def trains(self) -> None:
        """Waits until there are updates."""

        def updates() -> bool:
            assert self.process.poll() is None, self.stderr
            self._seen |= set(psutil.Process(self.process.pid).children(recursive=True))
            metrics = list(self.root.glob("*/metrics.jsonl"))
            return bool(metrics) and "losses/td_loss" in metrics[0].read_text()

        until(updates, "the first updates", 240)

    def ends(self) -> int:
        until(lambda: self.process.poll() is not None, "the end of the run", 240)
        until(lambda: not any(process.is_running() for process in self._seen), "its processes to be gone", 30)
        assert list(self.temporary.glob("drqn-ray-*")) == []
        return self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._log.close()
        shutil.rmtree(self.temporary)


@contextmanager
def command(root: Path, *arguments: str) -> Iterator[Command]:
    running = Command(root, *arguments)
    try:
        yield running
    finally:
        running.close()


@pytest.mark.parametrize(
    ("mode", "number", "to_all"),
    [
        ("serial", signal.SIGINT, True),
        ("serial", signal.SIGTERM, False),
        ("serial", signal.SIGHUP, False),
        pytest.param("ray", signal.SIGINT, True, marks=pytest.mark.ray),
        pytest.param("ray", signal.SIGTERM, False, marks=pytest.mark.ray),
    ],
)
def test_a_signal_ends_the_run_with_checkpoint_and_summary_and_it_can_be_resumed(
    mode: str, number: signal.Signals, to_all: bool, tmp_path: Path
) -> None:
    arguments = [*TINY, "--mode", mode, "--run-dir", str(tmp_path / "runs"), "--total-steps", "100000000"]
    ours = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored, and by all children
    with command(tmp_path, *arguments) as run:
        signal.signal(signal.SIGHUP, ours)
        run.trains()
        if mode == "ray":
            _expect_a_token(run.process.pid)
        if to_all:  # Ctrl-C reaches every process of the terminal
            os.killpg(run.process.pid, number)
        else:
            run.process.send_signal(number)
        assert run.ends() == 0, run.stderr
        assert "Traceback" not in run.stderr
        folder = run.folder
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["stopped_by"] == "signal"
    newest = open_run(folder).checkpoints.latest()
    assert newest is not None
    assert (newest.updates, weights_sha256(newest.tensors)) == (summary["updates"], summary["weights_sha256"])
    if mode == "ray" and to_all:
        return  # resuming is tried once in each mode
    more = summary["agent_steps"] + 400
    with command(tmp_path, "--resume", str(folder), "--total-steps", str(more)) as run:
        assert run.ends() == 0, run.stderr
        goes_on = f"goes on from update {summary['updates']:,} at {summary['agent_steps']:,} agent steps"
        assert goes_on in run.stderr
        assert re.search(r"replay took back [\d,]+ steps \([\d,]+ fragments\) from its journal in", run.stderr)
    again = json.loads((folder / "summary.json").read_text())
    assert again["stopped_by"] == "total_steps"
    assert again["agent_steps"] >= more
    assert again["updates"] > summary["updates"]


def _expect_a_token(pid: int) -> None:
    """Nobody joins this Ray without the token of its run."""
    (raylet, *_) = [p for p in psutil.Process(pid).children(recursive=True) if p.name() == "raylet"]
    (address,) = [word.partition("=")[2] for word in raylet.cmdline() if word.startswith("--gcs-address=")]
    token = raylet.environ()["RAY_AUTH_TOKEN"]
    assert len(token) == 64
    script = f"import ray; ray.init(address={address!r}, log_to_driver=False); print('joined')"
    guests = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": known},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for known in (token, "0" * 64)
    ]
    friend, stranger = (guest.communicate(timeout=120) for guest in guests)
    assert "joined" in friend[0], friend[1]
    assert "joined" not in stranger[0]
    assert "Failed to connect" in stranger[1]


@pytest.mark.ray
def test_a_run_whose_ray_or_own_process_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    runs = str(tmp_path / "runs")
    endless = ["--total-steps", "100000000", "--checkpoint-period-s", "1"]
    with command(tmp_path, *TINY, "--mode", "ray", "--run-dir", runs, *endless) as run:
        run.trains()
        keeper = psutil.Process(run.process.pid)
        for death, victim in enumerate(("raylet", "driver")):
            folder, before = run.folder, _newest_update(run)
            until(lambda folder=run.folder, before=before: _newest_update(run) > before, "another checkpoint", 60)  # type: ignore[misc]
            before = _newest_update(run)
            (driver,) = keeper.children()
            (raylet,) = [p for p in driver.children(recursive=True) if p.name() == "raylet"]
            (raylet if victim == "raylet" else driver).kill()
            until(lambda death=death: run.stderr.count("; it goes on from update ") > death, "the keeper's word", 60)  # type: ignore[misc]
            until(lambda before=before: _newest_update(run) > before, "updates to go on", 120)  # type: ignore[misc]
            assert run.folder == folder
        run._seen |= set(keeper.children(recursive=True))
        run.process.send_signal(signal.SIGTERM)
        assert run.ends() == 0, run.stderr
        said = run.stderr
    assert re.search(r"the run failed \(failure 1 within 3600 s\), starting it again in 0 s: its ", said)
    assert said.count("replay took back ") == 2
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["stopped_by"] == "signal"
    assert summary["updates"] == _newest_update(run)


def _newest_update(run: Command) -> int:
    return max((int(path.stem.split("_")[1]) for path in run.folder.glob("checkpoints/*.safetensors")), default=-1)


def test_a_disk_full_while_checkpointing_keeps_the_last_good_checkpoint_and_training_goes_on(tmp_path: Path) -> None:
    runs = str(tmp_path / "runs")
    large = ["--network.torso-units=64", "--network.core-units=64"]
    with command(tmp_path, *TINY, *large, "--mode", "serial", "--run-dir", runs, "--total-steps", "500") as run:
        assert run.ends() == 0, run.stderr
        folder = run.folder
    (good,) = (folder / "checkpoints").iterdir()
    before = good.read_bytes()
    limit = len(before) // 2  # files of a checkpoint's size cannot be written any more, small ones can
    script = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "from drqn_dist.cli import main;"
        f"main(['train', '--resume', {str(folder)!r}, '--total-steps', '1200', '--checkpoint-period-s', '0.1'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    assert any(line.startswith("not saved: could not write checkpoint") for line in lines)
    assert lines[-1].startswith("drqn-dist: error: could not write checkpoint")
    assert f"is safe in {folder / 'checkpoints'}; go on with drqn-dist train --resume {folder}" in lines[-1]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [good.name]
    assert good.read_bytes() == before
    assert json.loads((folder / "summary.json").read_text())["agent_steps"] >= 1200
