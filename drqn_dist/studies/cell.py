"""One run of a study, from its training to the file that the report reads."""

import fcntl
import json
import os
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from drqn_dist.checkpoint import Checkpoint
from drqn_dist.config import EnvConfig, TrainConfig, differences, from_dict
from drqn_dist.errors import CheckpointUnreadError, ConfigError, DrqnError, RunFolderError
from drqn_dist.experiments.plot import EVAL_TAG, TRAINING_TAG
from drqn_dist.experiments.run_folder import RunFolder, Summary, open_run
from drqn_dist.files import write_atomically
from drqn_dist.metrics import read_metrics
from drqn_dist.reading import read_json
from drqn_dist.seeding import EVALUATION_SEED
from drqn_dist.studies.study import Cell
from drqn_dist.training.facts import check_facts

CURVE_POINTS = 200
"""Of each learning curve that is kept."""
_IRRELEVANT = frozenset(["run_dir", "log_period_s", "checkpoint_period_s", "checkpoints_kept"])
"""Settings that change nothing about what a run comes to."""

Points = list[list[float]]


@dataclass(frozen=True)
class Outcome:
    """What is kept of a finished run; a JSON file."""

    config: dict[str, Any]
    episodes: int
    """Greedy games that the last weights were to play after the run, none of them seen before."""
    scores: list[float]
    """Their unclipped returns; fewer where `eval.max_steps` did not let some begin."""
    agent_steps: int
    frames: int
    updates: int
    minutes: float
    stopped_by: str
    resumed: bool
    """Whether the run was stopped on the way and resumed."""
    weights_sha256: str
    evaluations: Points
    """[agent steps, minutes, mean return] of the greedy evaluations while it trained, and of the one at its end."""
    training: Points
    """The same of recent training games."""
    probes: dict[str, float]
    """Means over the second half of the run of what the learner measured of itself, by tag without `probe/`."""
    versions: dict[str, str]
    """Of what trained it."""
    machine: dict[str, Any]
    """On which the run began."""
    elsewhere: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name of another environment: its settings, `env`, and the `scores` of as many games there."""
    cut_short: int | None = None
    """Games that `eval.max_steps` ended or did not let begin; None of versions that did not count them."""

    @property
    def while_training(self) -> Points:
        """Its evaluations without the last one, that of the end, which has other games, and mostly more."""
        return self.evaluations[:-1]


def outcome_path(out: Path, cell: Cell) -> Path:
    return out / "cells" / f"{cell.name}.json"


def read_outcome(out: Path, cell: Cell) -> Outcome | None:
    """What a finished cell came to; None if it has not finished, or with other settings or games than it has now.

    Raises:
        RunFolderError: its file cannot be read.
    """
    path = outcome_path(out, cell)
    try:
        outcome = from_dict(Outcome, read_json(path))
        config = from_dict(TrainConfig, outcome.config)
    except FileNotFoundError:
        return None
    except (ConfigError, TypeError):  # of a version with other settings, or that kept other things
        return None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}; delete it, and the cell is run again") from error
    same = (
        not set(differences(config, cell.config)) - _IRRELEVANT
        and outcome.episodes == cell.episodes
        and {name: played.get("env") for name, played in outcome.elsewhere.items() if isinstance(played, dict)}
        == {name: asdict(env) for name, env in cell.elsewhere.items()}
    )
    return outcome if same else None


def settings_that_differ(out: Path, cell: Cell) -> list[str]:
    """Of an outcome that lies where a cell's would, but does not count as it: in what they differ."""
    try:
        kept = from_dict(Outcome, read_json(outcome_path(out, cell)))
        names = sorted(set(differences(from_dict(TrainConfig, kept.config), cell.config)) - _IRRELEVANT)
    except (ConfigError, TypeError, OSError, ValueError):
        return ["of another version"]
    return names or ["episodes or elsewhere"]


def run_cell(cell: Cell, out: Path, runs: Path, told_to_stop: threading.Event) -> None:
    """Trains a cell, or goes on where it was stopped, lets its last weights play, and writes its outcome.

    Args:
        out: where outcomes are kept.
        runs: where the runs' folders lie.
        told_to_stop: set before a signal is sent to this process.

    Raises:
        DrqnError: as `train` and `evaluate`, or another process is at it.
        SystemExit: 130; a signal stopped the training, which goes on next time.
    """
    place = runs / cell.name
    place.mkdir(parents=True, exist_ok=True)
    with open(runs / f"{cell.name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunFolderError(f"another process is at {place}; wait for it, or end it") from None
        if read_outcome(out, cell) is None:  # another process may have finished it meanwhile
            _run_alone(cell, out, place, told_to_stop)


def _run_alone(cell: Cell, out: Path, place: Path, told_to_stop: threading.Event) -> None:
    # Torch takes seconds to import, and the parent has no use for it.
    from drqn_dist.experiments.evaluate import evaluate
    from drqn_dist.training.train import train

    before = set(place.glob("*"))
    found = _begun_run(before, cell.config)
    if found is None:
        train(replace(cell.config, run_dir=str(place)))
        (path,) = set(place.glob("*")) - before
        run = open_run(path)
    else:
        run, checkpoint = found
        if run.read_summary().stopped_by in ("signal", "unfinished"):
            rest = _with_time_left(replace(run.config, minutes=cell.config.minutes), checkpoint)
            train(rest, resume=run.path)
    summary = run.read_summary()
    if told_to_stop.is_set() or summary.stopped_by == "signal":
        raise SystemExit(130)
    seed = EVALUATION_SEED + cell.config.seed
    played = evaluate(run.path, cell.episodes, seed)
    elsewhere = {
        name: {"env": asdict(env), "scores": evaluate(run.path, cell.episodes, seed, env=env)["scores"]}
        for name, env in cell.elsewhere.items()
    }
    outcome = _outcome(cell, run, summary, played, elsewhere)
    path = outcome_path(out, cell)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(asdict(outcome)) + "\n").encode())
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error


def _outcome(
    cell: Cell, run: RunFolder, summary: Summary, played: dict[str, Any], elsewhere: dict[str, dict[str, Any]]
) -> Outcome:
    lines = read_metrics(run.path)
    made = run.read_description()
    last = run.checkpoints.latest()
    return Outcome(
        config=asdict(cell.config),
        episodes=cell.episodes,
        scores=played["scores"],
        cut_short=played["cut_short"],
        elsewhere=elsewhere,
        agent_steps=summary.agent_steps,
        frames=summary.frames,
        updates=summary.updates,
        minutes=round(summary.wall_s / 60, 3),
        stopped_by=summary.stopped_by,
        resumed=last is not None and _times_started(last) > 1,
        weights_sha256=summary.weights_sha256,
        evaluations=_curve(_without_refused(lines, cell.config), EVAL_TAG),
        training=_curve(lines, TRAINING_TAG),
        probes=_probes(lines, summary.agent_steps / 2),
        versions=made["versions"],
        machine=made["machine"],
    )


def _begun_run(folders: Iterable[Path], config: TrainConfig) -> tuple[RunFolder, Checkpoint] | None:
    """The newest run with these settings that left a checkpoint.

    Raises:
        CheckpointUnreadError: a checkpoint could not be read.
    """
    found = []
    for path in folders:
        try:
            run = open_run(path)
            checkpoint = run.checkpoints.latest()
            if has_settings(run, config) and checkpoint is not None:
                check_facts(checkpoint.meta, checkpoint.path)
                run.read_summary()
                found.append((run, checkpoint))
        except CheckpointUnreadError:  # it may be there at the next try
            raise
        except DrqnError:  # of another version, or stopped before there was anything to go on from
            continue
    return max(found, key=lambda pair: pair[0].path.stat().st_mtime, default=None)


def has_settings(run: RunFolder, config: TrainConfig) -> bool:
    """Whether a run began with these settings, as far as they matter.

    Raises:
        RunFolderError: its own cannot be read.
    """
    irrelevant = _IRRELEVANT | ({"actors"} if config.actors is None else set())
    # A start after a stop has fewer minutes left; the first one had what the cell asks for.
    return set(differences(run.first_config(), config)) <= irrelevant


def _with_time_left(config: TrainConfig, checkpoint: Checkpoint) -> TrainConfig:
    """`minutes` bound the whole run, not what is left of it."""
    if config.minutes is None:
        return config
    return replace(config, minutes=max(config.minutes - float(checkpoint.meta.get("wall_s", 0.0)) / 60, 0.01))


def _times_started(checkpoint: Checkpoint) -> int:
    return int(checkpoint.meta.get("starts", 1))


def _without_refused(lines: list[dict[str, float]], config: TrainConfig) -> list[dict[str, float]]:
    """Without evaluations whose other games were to confirm that training had settled, and did not."""
    last = max((at for at, line in enumerate(lines) if EVAL_TAG in line), default=-1)
    return [
        line
        for at, line in enumerate(lines)
        if at == last or line.get("eval/episodes", config.eval.episodes) == config.eval.episodes
    ]


def _curve(lines: list[dict[str, float]], tag: str) -> Points:
    """[agent steps, minutes, value] of at most CURVE_POINTS lines of metrics, the last one among them."""
    points = [
        [int(line["agent_steps"]), round(line["wall_s"] / 60, 3), float(f"{line[tag]:.4g}")]
        for line in lines
        if tag in line
    ]
    every = -(-len(points) // CURVE_POINTS) or 1
    return points[::-1][::every][::-1]


def _probes(lines: list[dict[str, float]], since: float) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for line in lines:
        for tag, value in line.items():
            if tag.startswith("probe/") and line["agent_steps"] >= since:
                found.setdefault(tag.removeprefix("probe/"), []).append(value)
    return {name: float(f"{sum(values) / len(values):.4g}") for name, values in found.items()}


def _main(arguments: Sequence[str], parent: IO[str]) -> None:
    """Runs the cell that the first line of `parent` describes; the end of `parent`, by whatever ends it, stops it."""
    out, runs = map(Path, arguments)
    described = json.loads(parent.readline())
    described["config"] = from_dict(TrainConfig, described["config"])
    described["elsewhere"] = {name: from_dict(EnvConfig, env) for name, env in described["elsewhere"].items()}
    cell = Cell(**described)
    told_to_stop = threading.Event()

    def wait() -> None:
        parent.read()
        told_to_stop.set()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
    run_cell(cell, out, runs, told_to_stop)


if __name__ == "__main__":
    try:
        _main(sys.argv[1:], sys.stdin)
    except DrqnError as error:
        raise SystemExit(f"error: {error}") from None
