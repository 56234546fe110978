"""Runs a study's cells, each in a process of its own, as many side by side as the machine has cores."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from rich.console import Console

from drqn_dist.errors import ConfigError, RoleFailedError, RunFolderError
from drqn_dist.studies.cell import read_outcome
from drqn_dist.studies.study import Cell, Study
from drqn_dist.training.memory import usable_cores

POLL_S = 0.2


@dataclass
class _Running:
    cell: Cell
    process: subprocess.Popen[bytes]
    log: Path
    told_from: int
    """Bytes of the log that are older than this process."""
    started: float


def run_study(study: Study, out: Path, runs: Path, jobs: int | None) -> None:
    """Runs every cell that has not finished. Ctrl-C lets the running ones save; they go on next time.

    Args:
        out: where outcomes are kept.
        runs: where the runs' folders and logs lie.
        jobs: runs at a time; None: as many as cores, but one where a run starts Ray, which takes them all.

    Raises:
        ConfigError: jobs is not positive.
        RunFolderError: a folder cannot be made.
        RoleFailedError: cells failed; the others have finished.
    """
    if jobs is None:
        jobs = usable_cores() if all(cell.config.mode == "serial" for cell in study.cells) else 1
    if jobs < 1:
        raise ConfigError(f"--jobs is {jobs}, but must be at least 1")
    console = Console(stderr=True, highlight=False)
    waiting = [cell for cell in study.cells if read_outcome(out, cell) is None]
    total, left, began = len(study.cells), len(waiting), time.monotonic()
    console.print(f"{study.title}: {total} runs, {total - left} finished before; {jobs} at a time, logs in {runs}")
    running: list[_Running] = []
    failed: list[str] = []
    done = 0
    try:
        with console.status("") as status:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(_start(waiting.pop(0), out, runs))
                names = ", ".join(f"{r.cell.name} ({(time.monotonic() - r.started) / 60:.1f} min)" for r in running)
                status.update(f"{left - done} to go: {names}")
                time.sleep(POLL_S)
                for ended in [r for r in running if r.process.poll() is not None]:
                    running.remove(ended)
                    _close(ended.process)
                    done += 1
                    outcome = read_outcome(out, ended.cell)
                    if outcome is None:
                        failed.append(f"{ended.cell.name} ({_why(ended)})")
                        told = "FAILED"
                    else:
                        told = f"mean return {sum(outcome.scores) / len(outcome.scores):.2f}"
                    minutes = (time.monotonic() - began) / 60
                    console.print(
                        f"{ended.cell.name}: {told}, {(time.monotonic() - ended.started) / 60:.1f} min; "
                        f"{left - done} to go, about {minutes * (left - done) / done:.0f} min"
                    )
    except KeyboardInterrupt:
        console.print(f"stopping: {len(running)} runs save themselves; the same command goes on with them")
        raise
    finally:
        _end([each.process for each in running])
    if failed:
        raise RoleFailedError(f"{len(failed)} of {total} runs failed: {'; '.join(failed)}; logs in {runs}")


def _start(cell: Cell, out: Path, runs: Path) -> _Running:
    command = [sys.executable, "-m", "drqn_dist.studies.cell", str(out), str(runs)]
    log = runs / f"{cell.name}.log"
    try:
        runs.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as stream:
            told_from = stream.tell()
            process = _popen(command, stream)
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it ended at once; its exit code tells
            process.stdin.write(json.dumps(asdict(cell)).encode() + b"\n")
            process.stdin.flush()
    except OSError as error:
        raise RunFolderError(f"cannot start {cell.name} with its log in {runs}: {error.strerror or error}") from error
    return _Running(cell, process, log, told_from, time.monotonic())


def _popen(command: list[str], stream: IO[bytes]) -> subprocess.Popen[bytes]:
    # In a session of its own: Ctrl-C in the terminal is this process's to deal with. Its stdin stays open as long as
    # this process lives, so that no run outlives it, whatever ends it.
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
    )


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Lets runs save. A second Ctrl-C tells them to give that up, a third kills them."""
    ways: list[Callable[[subprocess.Popen[bytes]], None]] = [
        _close,
        lambda each: each.terminate(),
        lambda each: each.kill(),
    ]
    for way in ways:
        with suppress(KeyboardInterrupt):
            for process in processes:
                way(process)
            for process in processes:
                process.wait()
            return


def _close(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()


def _why(ended: _Running) -> str:
    """The last line that a process wrote, and how it ended."""
    with open(ended.log, "rb") as file:
        file.seek(ended.told_from)
        lines = file.read().decode(errors="replace").strip().splitlines()
    return f"{lines[-1] if lines else 'no word'}; exit code {ended.process.returncode}"
