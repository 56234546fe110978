"""One run of a study, from its training to the file that the report reads."""

import fcntl
import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from drqn_dist.checkpoint import write_atomically
from drqn_dist.config import TrainConfig, differences, from_dict
from drqn_dist.errors import ConfigError, DrqnError, RunFolderError
from drqn_dist.experiments.plot import EVAL_TAG, TRAINING_TAG
from drqn_dist.experiments.run_folder import RunFolder, machine_description, open_run, versions
from drqn_dist.metrics import read_metrics
from drqn_dist.seeding import EVALUATION_SEED
from drqn_dist.studies.study import Cell, load_study

CURVE_POINTS = 200
"""Of each learning curve that is kept."""
_ELSEWHERE = frozenset(["run_dir", "log_period_s", "checkpoint_period_s", "checkpoints_kept"])
"""Settings that change nothing about what a run comes to."""

Points = list[list[float]]


@dataclass(frozen=True)
class Outcome:
    """What is kept of a finished run; a JSON file."""

    config: dict[str, Any]
    scores: list[float]
    """Unclipped returns of the greedy games that the last weights played after the run, none of them seen before."""
    agent_steps: int
    frames: int
    updates: int
    minutes: float
    stopped_by: str
    resumed: bool
    """Whether the run was stopped and went on with a replay that it had to fill again."""
    weights_sha256: str
    evaluations: Points
    """[agent steps, minutes, mean return] of the greedy evaluations while it trained."""
    training: Points
    """The same of recent training games."""
    versions: dict[str, str]
    machine: dict[str, Any]


def outcome_path(out: Path, cell: Cell) -> Path:
    return out / "cells" / f"{cell.name}.json"


def read_outcome(out: Path, cell: Cell) -> Outcome | None:
    """What a finished cell came to; None if it has not finished, or with other settings or games than it has now.

    Raises:
        RunFolderError: its file cannot be read.
    """
    path = outcome_path(out, cell)
    try:
        outcome = Outcome(**json.loads(path.read_text(encoding="utf-8")))
        config = from_dict(TrainConfig, outcome.config)
    except FileNotFoundError:
        return None
    except ConfigError:  # of a version with other settings
        return None
    except (OSError, ValueError, TypeError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}; delete it, and the cell is run again") from error
    same = not set(differences(config, cell.config)) - _ELSEWHERE and len(outcome.scores) == cell.episodes
    return outcome if same else None


def run_cell(cell: Cell, out: Path, runs: Path) -> None:
    """Trains a cell, or goes on where it was stopped, lets its last weights play, and writes its outcome.

    Raises:
        DrqnError: as `train` and `evaluate`, or another process is at it.
        SystemExit: 130; a signal stopped the training, which goes on next time.
    """
    # Torch takes seconds to import, and the parent has no use for it.
    from drqn_dist.experiments.evaluate import evaluate
    from drqn_dist.training.train import train

    place = runs / cell.name
    place.mkdir(parents=True, exist_ok=True)
    lock = open(runs / f"{cell.name}.lock", "w")  # noqa: SIM115 (held until this process ends)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise RunFolderError(f"another process is at {place}; wait for it, or end it") from None
    if read_outcome(out, cell) is not None:  # another process has finished it meanwhile
        return
    before = set(place.glob("*"))
    earlier = _stopped_run(before, cell.config)
    if earlier is None:
        summary = train(replace(cell.config, run_dir=str(place)))
        (run,) = set(place.glob("*")) - before
    else:
        run = earlier.path
        summary = train(earlier.config, resume=run)
    if summary.stopped_by == "signal":
        raise SystemExit(130)
    scores = evaluate(run, cell.episodes, EVALUATION_SEED + cell.config.seed)["scores"]
    lines = read_metrics(run)
    outcome = Outcome(
        config=asdict(cell.config),
        scores=scores,
        agent_steps=summary.agent_steps,
        frames=summary.frames,
        updates=summary.updates,
        minutes=round(summary.wall_s / 60, 3),
        stopped_by=summary.stopped_by,
        resumed=earlier is not None,
        weights_sha256=summary.weights_sha256,
        evaluations=_curve(lines, EVAL_TAG),
        training=_curve(lines, TRAINING_TAG),
        versions=versions(),
        machine=machine_description(),
    )
    path = outcome_path(out, cell)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(asdict(outcome)) + "\n").encode())
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error


def _stopped_run(folders: Iterable[Path], config: TrainConfig) -> RunFolder | None:
    """The newest run with these settings that left a checkpoint."""
    found = []
    for path in folders:
        with suppress(DrqnError):  # of another version, or stopped before there was anything to go on from
            run = open_run(path)
            same = set(differences(run.config, config)) <= _ELSEWHERE | {"actors"}
            if same and run.checkpoints.latest() is not None:
                found.append(run)
    return max(found, key=lambda run: run.path.stat().st_mtime, default=None)


def _curve(lines: list[dict[str, float]], tag: str) -> Points:
    """[agent steps, minutes, value] of at most CURVE_POINTS lines of metrics, the last one among them."""
    points = [
        [int(line["agent_steps"]), round(line["wall_s"] / 60, 3), float(f"{line[tag]:.4g}")]
        for line in lines
        if tag in line
    ]
    every = -(-len(points) // CURVE_POINTS) or 1
    return points[::-1][::every][::-1]


def _main(arguments: Sequence[str]) -> None:
    file, name, out, runs = arguments
    (cell,) = [cell for cell in load_study(Path(file)).cells if cell.name == name]
    run_cell(cell, Path(out), Path(runs))


if __name__ == "__main__":
    try:
        _main(sys.argv[1:])
    except DrqnError as error:
        raise SystemExit(f"error: {error}") from None
