"""A study's cells as tasks of a Ray cluster."""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.exceptions import RayError

from drqn_dist.distributed.local_ray import LocalRay
from drqn_dist.errors import DrqnError, RunFolderError
from drqn_dist.files import write_atomically
from drqn_dist.studies.cell import outcome_path, run_cell
from drqn_dist.studies.runner import Job, Place
from drqn_dist.studies.study import Cell

SAVE_S = 60.0
"""How long cells that are stopped may take to save."""


def run_there(cell: Cell, runs: str) -> str:
    """Runs a cell in this process, a task's, and answers its outcome as JSON.

    Raises:
        DrqnError: as `run_cell`; with the type's name, because not every error of ours can travel.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        try:
            run_cell(cell, out, Path(runs), threading.Event())
        except DrqnError as error:
            raise RuntimeError(f"{type(error).__name__}: {error}") from None
        except SystemExit:
            raise RuntimeError("it was stopped") from None
        return outcome_path(out, cell).read_text(encoding="utf-8")


class _Task:
    """A cell as a task of the cluster."""

    def __init__(self, cell: Cell, out: Path, answer: "ray.ObjectRef[str]") -> None:
        self.answer = answer
        self._cell, self._out = cell, out
        self._why = "no word"

    def ended(self) -> bool:
        if not ray.wait([self.answer], timeout=0)[0]:
            return False
        try:
            text = ray.get(self.answer)
        except RayError as error:
            lines = str(getattr(error, "cause", None) or error).strip().splitlines()
            self._why = lines[-1] if lines else type(error).__name__
            return True
        path = outcome_path(self._out, self._cell)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text.encode())
        except OSError as error:
            raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error
        return True

    def why(self) -> str:
        return self._why


class _Cluster:
    def __init__(self, out: Path, runs: Path) -> None:
        self._out, self._runs = out, runs
        # A cancelled task is not tried again; one whose node is lost is, and goes on where its folder is shared.
        self._remote = ray.remote(num_cpus=1, max_retries=3)(run_there)

    def start(self, cell: Cell) -> _Task:
        return _Task(cell, self._out, self._remote.remote(cell, str(self._runs.absolute())))

    def stop(self, jobs: list[Job], insist: int) -> int:
        answers = [job.answer for job in jobs if isinstance(job, _Task)]
        for answer in answers:
            ray.cancel(answer, force=insist > 0)
        return len(ray.wait(answers, num_returns=len(answers), timeout=SAVE_S)[1]) if answers else 0


@contextmanager
def cluster(address: str, out: Path, runs: Path) -> Iterator[Place]:
    """The cluster at an address, or the Ray that this process has joined already.

    Raises:
        ConfigError: it cannot be joined.
    """
    joined = LocalRay(address, cpus=0, store_bytes=0)
    try:
        yield _Cluster(out, runs)
    finally:
        joined.close()
