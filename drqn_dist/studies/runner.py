"""Runs a study's cells: each in a process of its own, as many at a time as the machine has cores, or as Ray tasks."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Protocol

from rich.console import Console

from drqn_dist.config import EnvConfig
from drqn_dist.envs.make import env_spec
from drqn_dist.errors import ConfigError, RoleFailedError, RunFolderError
from drqn_dist.experiments.run_folder import open_run
from drqn_dist.reading import parse_json
from drqn_dist.studies.cell import has_settings, outcome_path, read_outcome, settings_that_differ
from drqn_dist.studies.study import Cell, Study
from drqn_dist.training.memory import usable_cores

POLL_S = 0.5
NAMED = 4
"""At most so many running cells are named on the screen."""


class Job(Protocol):
    """A cell under way."""

    def ended(self) -> bool:
        """Whether it has come to its end, good or bad; then its outcome is written, if it has one."""
        ...

    def why(self) -> str:
        """Once it has ended without an outcome: how."""
        ...


class Place(Protocol):
    """Where cells are run."""

    def start(self, cell: Cell) -> Job: ...

    def stop(self, jobs: list[Job], insist: int) -> int:
        """Lets these save, and waits for them; insisting once, they are told to give that up, and twice, ended. Answers
        how many have not ended in time."""
        ...


def run_study(study: Study, out: Path, runs: Path, jobs: int | None, address: str | None = None) -> None:
    """Runs every cell that has not finished. Ctrl-C lets the running ones save; they go on next time.

    Args:
        out: where outcomes are kept.
        runs: where the runs' folders and logs lie; on a cluster on the node that runs a cell.
        jobs: runs at a time; None: as many as cores, but one where a run starts Ray, which takes them all; on a cluster
            all of them, as it has room.
        address: of a Ray cluster whose tasks the cells are; None: this machine.

    Raises:
        ConfigError: jobs is not positive, or a cell that starts Ray is to be a task of it.
        EnvError: an environment cannot be made; nothing was run.
        RunFolderError: a folder cannot be made.
        RoleFailedError: cells failed; the others have finished.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs is {jobs}, but must be at least 1")
    waiting = [cell for cell in study.cells if read_outcome(out, cell) is None]
    _try_environments(waiting)
    if jobs is None and address is not None:
        jobs = max(1, len(waiting))
    elif jobs is None:
        jobs = usable_cores() if all(cell.config.mode == "serial" for cell in study.cells) else 1
    with _place(study, out, runs, address) as place:
        _run(study, waiting, place, jobs, out, runs)


def _try_environments(cells: list[Cell]) -> None:
    """Makes each environment once: what is missing or misspelt is to be known before hours of training, not after."""
    known: list[EnvConfig] = []
    for cell in cells:
        for env in (cell.config.env, *cell.elsewhere.values()):
            if env not in known:
                known.append(env)
                env_spec(env)


def _place(study: Study, out: Path, runs: Path, address: str | None) -> AbstractContextManager[Place]:
    if address is None:
        return _here(out, runs)
    for cell in study.cells:
        if cell.config.mode != "serial":
            raise ConfigError(f'{cell.name} starts Ray and cannot be a task of it; give it mode = "serial"')
    from drqn_dist.distributed.study_tasks import cluster  # Ray takes a second to import

    return cluster(address, out, runs)


def _run(study: Study, waiting: list[Cell], place: Place, at_a_time: int, out: Path, runs: Path) -> None:
    console = Console(stderr=True, highlight=False)
    total, left, began = len(study.cells), len(waiting), time.monotonic()
    console.print(f"{study.title}: {total} runs, {total - left} finished before; {at_a_time} at a time, in {runs}")
    if not waiting:
        console.print(
            f"nothing is left to run: all outcomes lie in {out}; --out and --runs name other folders to run it anew"
        )
    other = {cell.name: settings_that_differ(out, cell) for cell in waiting if outcome_path(out, cell).exists()}
    if other:
        name, settings = next(iter(other.items()))
        console.print(
            f"{len(other)} outcomes in {out} are of other settings and will be replaced, such as {name} "
            f"({', '.join(settings)}); --out names another folder"
        )
    running: dict[str, tuple[Cell, Job, float]] = {}
    before: dict[str, float] = {}  # shares that earlier starts had made
    failed: list[str] = []
    done = 0
    try:
        with console.status("") as status:
            while waiting or running:
                while waiting and len(running) < at_a_time:
                    cell = waiting.pop(0)
                    before[cell.name] = _share_done(runs, cell)
                    running[cell.name] = (cell, place.start(cell), time.monotonic())
                shares = {name: _share_done(runs, cell) for name, (cell, *_) in running.items()}
                shown = [f"{name} ({share:.0%})" for name, share in shares.items()]
                more = f" and {len(shown) - NAMED} more" if len(shown) > NAMED else ""
                worked = done + sum(shares.values())
                made = worked - sum(before.values())
                eta = f", about {_minutes(_minutes_since(began) * (left - worked) / made)}" if made > 0.02 else ""
                status.update(f"{left - done} to go{eta}: {', '.join(shown[:NAMED])}{more}")
                time.sleep(POLL_S)
                for cell, job, since in [entry for entry in running.values() if entry[1].ended()]:
                    del running[cell.name]
                    done += 1
                    outcome = read_outcome(out, cell)
                    if outcome is None:
                        failed.append(f"{cell.name} ({job.why()})")
                        told = "FAILED"
                    else:
                        told = f"mean return {sum(outcome.scores) / len(outcome.scores):.2f}"
                    console.print(f"{cell.name}: {told}, {_minutes(_minutes_since(since))}; {left - done} to go")
    except KeyboardInterrupt:
        console.print(f"stopping: {len(running)} runs save themselves; the same command goes on with them")
        raise
    finally:
        for insist in range(3):  # each further Ctrl-C insists more
            with suppress(KeyboardInterrupt):
                late = place.stop([job for _, job, _ in running.values()], insist)
                if late:
                    console.print(f"{late} runs did not save in time; they go on from their last checkpoints")
                break
    if failed:
        raise RoleFailedError(f"{len(failed)} of {total} runs failed: {'; '.join(failed)}; logs in {runs}")


def _share_done(runs: Path, cell: Cell) -> float:
    """Of a run's steps or minutes, by the last line of its metrics; 0 where they are not here (yet)."""
    newest = None
    for path in sorted(runs.glob(f"{cell.name}/*/metrics.jsonl"), key=lambda path: path.stat().st_mtime):
        with suppress(RunFolderError):  # of another version
            newest = path if has_settings(open_run(path.parent), cell.config) else newest
    if newest is None:
        return 0.0
    with open(newest, "rb") as file:
        file.seek(max(0, newest.stat().st_size - 8192))
        lines = file.read().split(b"\n")[:-1]
    with suppress(IndexError, ValueError, KeyError, TypeError):  # nothing whole yet
        line = parse_json(lines[-1].decode())
        by_the_clock = line["wall_s"] / 60 / cell.config.minutes if cell.config.minutes else 0.0
        return min(1.0, float(max(line["agent_steps"] / cell.config.total_steps, by_the_clock)))
    return 0.0


def _minutes(minutes: float) -> str:
    return f"{minutes:.{0 if minutes >= 10 else 1}f} min"


def _minutes_since(moment_s: float) -> float:
    return (time.monotonic() - moment_s) / 60


class _Process:
    """A cell in a process of this machine."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, told_from: int) -> None:
        """
        Args:
            told_from: bytes of the log that are older than this process.
        """
        self.process = process
        self._log, self._told_from = log, told_from

    def ended(self) -> bool:
        if self.process.poll() is None:
            return False
        self.hang_up()
        return True

    def why(self) -> str:
        with open(self._log, "rb") as file:
            file.seek(self._told_from)
            lines = file.read().decode(errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else 'no word'}; exit code {self.process.returncode}"

    def hang_up(self) -> None:
        """Lets it save and end."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()


class _Here:
    """This machine."""

    def __init__(self, out: Path, runs: Path) -> None:
        self._out, self._runs = out, runs

    def start(self, cell: Cell) -> _Process:
        """
        Raises:
            RunFolderError: its log cannot be written.
        """
        command = [sys.executable, "-m", "drqn_dist.studies.cell", str(self._out), str(self._runs)]
        log = self._runs / f"{cell.name}.log"
        try:
            self._runs.mkdir(parents=True, exist_ok=True)
            with open(log, "ab") as stream:
                told_from = stream.tell()
                process = _popen(command, stream)
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # it ended at once; its exit code tells
                process.stdin.write(json.dumps(asdict(cell)).encode() + b"\n")
                process.stdin.flush()
        except OSError as error:
            raise RunFolderError(
                f"cannot start {cell.name} with its log in {self._runs}: {error.strerror or error}"
            ) from error
        return _Process(process, log, told_from)

    def stop(self, jobs: list[Job], insist: int) -> int:
        processes = [job for job in jobs if isinstance(job, _Process)]
        ways: list[Callable[[_Process], None]] = [
            _Process.hang_up,
            lambda job: job.process.terminate(),
            lambda job: job.process.kill(),
        ]
        for job in processes:
            ways[insist](job)
        for job in processes:
            job.process.wait()
        return 0


@contextmanager
def _here(out: Path, runs: Path) -> Iterator[Place]:
    yield _Here(out, runs)


def _popen(command: list[str], stream: IO[bytes]) -> subprocess.Popen[bytes]:
    # In a session of its own: Ctrl-C in the terminal is this process's to deal with. Its stdin stays open as long as
    # this process lives, so that no run outlives it, whatever ends it.
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
    )
