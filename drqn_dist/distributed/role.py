"""A process of the run, as the supervisor sees it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Literal

Kind = Literal["begin", "run", "evaluate", "pulse"]
"""Of a call."""


class RoleKind(Enum):
    """What a process does."""

    LEARNER = auto()
    REPLAY = auto()
    ACTOR = auto()
    EVALUATOR = auto()


@dataclass(eq=False)
class Role:
    """One process of the run, as the supervisor sees it."""

    name: str
    """For messages."""
    kind: RoleKind
    index: int = 0
    """Among those of its kind."""
    handle: Any = None
    begun: bool = False
    """It was told what to go on from (learner, replay), or gave a first sign of life."""
    seen_s: float = 0.0
    """When it last answered, or was asked what it has not answered yet."""
    started_s: float = 0.0
    """When Ray began to start it (learner, replay)."""
    process: int | None = None
    """Id of its process, as the last pulse told."""
    node: str | None = None
    """Id of the node on which it was seen last."""
    pulse_s: float = 0.0
    """When it was last asked for a sign of life."""
    not_before_s: float = 0.0
    """It rests until then."""
    failures: list[tuple[float, str | None]] = field(default_factory=list)
    """When it failed, and on which node it was then."""
    under_way: Counter[Kind] = field(default_factory=Counter)
    """Calls that it has not answered yet."""

    @property
    def has_pulse(self) -> bool:
        """The learner has none: its pieces end in time whether or not there is anything to learn from."""
        return self.kind is not RoleKind.LEARNER

    @property
    def waits_to_begin(self) -> bool:
        """Ray itself starts it again if it dies, and it has to be told what to go on from."""
        return self.kind in (RoleKind.LEARNER, RoleKind.REPLAY)
