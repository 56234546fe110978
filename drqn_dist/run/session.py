"""What the training loop drives: the roles of a run, in one process or in many."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from actors.actor import ActorStats
from actors.evaluator import Evaluation
from learner.learner import LearnerStats
from replay_server.replay import ReplayStats


@dataclass
class Report:
    """What happened since the last report."""

    actors: list[ActorStats] = field(default_factory=list)
    learner: list[LearnerStats] = field(default_factory=list)
    """In order; several pieces of work may have finished."""
    replay: ReplayStats | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    """What a person should know: a role failed and was started again, and so on."""


@dataclass(frozen=True)
class Saved:
    """The parts of a checkpoint."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    """JSON-able: learner, replay counters, incarnations of the actors."""


class Session(Protocol):
    """The roles of one run.

    ::

        session = SerialSession(config, restored) or RaySession(config, restored)
        while not done:
            report = session.advance(seconds)
            ... log, checkpoint session.save() ...
        session.evaluate(); session.close()
    """

    def advance(self, seconds: float) -> Report:
        """Lets the roles work for about this long, or until `total_steps` are reached."""
        ...

    def save(self) -> Saved:
        """Everything a later session needs to go on."""
        ...

    def evaluate(self, seed: int) -> Evaluation:
        """Plays `eval.episodes` with the newest weights and waits for the result."""
        ...

    def close(self) -> None:
        """Ends every process and frees everything; may be called twice."""
        ...
