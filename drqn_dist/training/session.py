"""What the training loop drives: the roles of a run, in one process or in many."""

import math
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from actors.actor import ActorStats
from actors.evaluator import Evaluation, Played
from drqn_dist.config import TrainConfig
from drqn_dist.files import write_atomically
from learner.learner import LearnerStats
from replay_server.stats import ReplayStats


@dataclass
class Report:
    """What happened since the last report."""

    actors: list[ActorStats] = field(default_factory=list)
    learner: list[LearnerStats] = field(default_factory=list)
    """In order; several pieces of work may have finished."""
    replay: ReplayStats | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
    gauges: dict[str, float] = field(default_factory=dict)
    """Queues and memory of the roles by tag, the most of those of a kind."""
    notes: list[str] = field(default_factory=list)
    """What the roles say of how they were set up."""
    events: list[str] = field(default_factory=list)
    """What a person should know: a role failed and was started again, and so on."""


@dataclass(frozen=True)
class Saved:
    """The parts of a checkpoint."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    """JSON-able: learner, replay counters, incarnations of the actors."""


_ASIDE = "replay-of-other-shards"
"""Folder of journals that were kept when the replay had another number of shards."""


def journal_folders(config: TrainConfig, run: Path | None) -> list[Path | None]:
    """Where each shard of the replay keeps its journal; None where it keeps none. Those of another number of shards
    are put aside, since what each holds and has counted is a share of the whole; `drop_other_shards` removes them."""
    shards = config.replay.shards if config.mode == "ray" else 1
    if run is None or not config.replay.journal:
        return [None] * shards
    root = run.resolve() / "replay"
    known = _number_in(root / "shards", 0)
    if known != shards:
        aside = root.with_name(_ASIDE)
        with suppress(OSError):
            if _number_in(aside / "shards", 0) == shards:  # the change was tried, and never began
                shutil.rmtree(root, ignore_errors=True)
                aside.rename(root)
            elif known:
                shutil.rmtree(aside, ignore_errors=True)
                root.rename(aside)
        with suppress(OSError):  # a disk that takes nothing: the replay says so
            root.mkdir(parents=True, exist_ok=True)
            write_atomically(root / "shards", str(shards).encode())
    return [root / str(shard) for shard in range(shards)]


def drop_other_shards(run: Path) -> bool:
    """Removes what `journal_folders` put aside, once a replay with the new number of shards has begun and the run's
    folder says so; whether there was anything."""
    aside = run.resolve() / _ASIDE
    there = aside.is_dir()
    shutil.rmtree(aside, ignore_errors=True)
    return there


def next_incarnation(run: Path | None, at_least: int) -> int:
    """A number for actors that begin new games, such as no actor of this run ever had, not even one that a checkpoint
    knows nothing of: sequence numbers rest on it, and the replay's journal remembers them."""
    if run is None:
        return at_least
    path = run / "incarnation"
    known = _number_in(path, -1)
    number = max(at_least, known + 1)
    if known < 0 and path.exists():  # what was given out is not known any more
        number += 1 + secrets.randbits(20)
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_atomically(path, str(number).encode())
    except OSError:  # a full disk does not end a run; a number that nobody has guessed will not come again
        number += 1 + secrets.randbits(20)
    return number


def _number_in(path: Path, otherwise: int) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return otherwise


def never(*_: object) -> bool:
    """Nobody asks to stop, or looks at how far an evaluation is."""
    return False


class Session(Protocol):
    """The roles of one run: `advance` again and again, `save` for every checkpoint, `evaluate`, `close`.

    Each raises RoleFailedError where a process failed too often; what was saved last stays.
    """

    def advance(self, seconds: float, stopping: Callable[[], bool] = never) -> Report:
        """Lets the roles work for about this long; returns earlier when `total_steps` are reached, when an evaluation
        has ended, or soon after `stopping()` comes true."""
        ...

    def save(self, patience_s: float = math.inf) -> Saved:
        """Everything a later session needs to go on.

        Args:
            patience_s: for a learner that is being started again; of one that is away for longer, what was saved last.
        """
        ...

    def evaluate(self, seed: int, progress: Callable[[Played], object] = never) -> Evaluation:
        """Plays `eval.final_episodes` with the weights of the last `save` and waits for the result; nobody trains
        meanwhile; `progress` hears now and then how far it is."""
        ...

    def close(self) -> None:
        """Ends every process and frees everything; may be called twice."""
        ...
