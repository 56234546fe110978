"""A process of the run, as the supervisor sees it, and what to do when it dies: a pure decision."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

Kind = Literal["begin", "run", "evaluate", "pulse", "save"]
"""Of a call."""


RoleKind = Enum("RoleKind", ["LEARNER", "REPLAY", "ACTOR", "EVALUATOR"])
"""What a process does."""


HANG_S = 20.0
"""A role that gives no sign of life for so long is ended and started again, and so is one whose work stands still."""
FADE = 0.98
"""... and each answer fades what came before, so that one stall does not blunt this for ever."""
PATIENCE = 10.0
"""... or for so many times the longest that it took so far: slow is not dead."""
START_S = 300.0
"""The same for a role that is just starting: it imports torch, and the machine may be busy."""


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
    moves: int | None = None
    """Batched steps that its last pulse told, or updates of the learner; None before the first answer."""
    compiled: bool = False
    """A learner has trained."""
    refused: int = 0
    """How often Ray refused to let it begin, since it was started."""
    moved_s: float = 0.0
    """When they last grew, or it had a reason to wait, or was given work after a rest."""
    slowest_s: float = 0.0
    """The longest time that it took for an answer or a step."""
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

    def answered(self, now_s: float) -> None:
        """It gave a sign of life."""
        if self.moves or (self.kind is RoleKind.REPLAY and self.begun):
            self.slowest_s = max(FADE * self.slowest_s, now_s - self.seen_s)
        self.seen_s, self.begun, self.refused = now_s, True, 0

    def trained(self, updates: int) -> None:
        """A learner's piece had updates, so many in all. The first one compiles and is not its pace; said before
        `answered`, so that the second one is."""
        self.moves = updates if self.compiled else None
        self.compiled = True

    def moved(self, now_s: float, moves: int) -> None:
        """So far had it come when it last answered; the first time, what came before is not counted as slow."""
        if moves != self.moves:
            if self.moves is not None:
                self.slowest_s = max(self.slowest_s, now_s - self.moved_s)
            self.moves, self.moved_s = moves, now_s

    def started_anew(self, now_s: float) -> None:
        """Another process takes its place; nothing is known of it yet."""
        self.begun, self.process, self.node, self.started_s = False, None, None, now_s
        self.moves, self.compiled, self.slowest_s, self.refused = None, False, 0.0, 0

    def hangs(self, now_s: float, hang_s: float) -> str:
        """What is wrong with a role that keeps silent, or whose process answers while its work stands still; nothing
        where all is well. What was slow before may be as slow again, and longer."""
        limit = max(hang_s, PATIENCE * self.slowest_s)
        silent, still = now_s - self.seen_s, now_s - self.moved_s
        starts = not self.begun or (self.kind is RoleKind.LEARNER and not self.moves)  # it compiles, or captures
        if self.under_way.total() and silent > (START_S if starts else limit):
            return f"no sign of life for {silent:.0f} s"
        works = self.has_pulse and self.begun and (self.under_way["run"] or self.under_way["evaluate"])
        # The first step may have to make its environments.
        if works and still > (limit if self.moves else START_S) and silent < limit / 2:
            return f"its process answers, but no step was done for {still:.0f} s"
        return ""

    @property
    def has_pulse(self) -> bool:
        """The learner has none: its pieces end in time whether or not there is anything to learn from."""
        return self.kind is not RoleKind.LEARNER

    @property
    def waits_to_begin(self) -> bool:
        """Ray itself starts it again if it dies, and it has to be told what to go on from."""
        return self.kind in (RoleKind.LEARNER, RoleKind.REPLAY)


MAX_FAILURES = 5
"""Failures of one role within the window that are still answered by a restart."""
WINDOW_S = 3_600.0
"""Older failures are forgiven. Much longer than a role that never starts takes to fail `MAX_FAILURES` times."""


@dataclass(frozen=True)
class Decision:
    """What the supervisor should do, and why, with the numbers."""

    action: Literal["restart", "stop"]
    delay_s: float
    """Wait this long before the restart."""
    reason: str


def decide(role: str, failed_at_s: Sequence[float], now_s: float, cause: str, node_lost: bool = False) -> Decision:
    """Restart a failed role with a growing delay, unless it keeps failing.

    Args:
        role: its name, for the message.
        failed_at_s: times of its failures so far, the present one included.
        now_s: the time now, on the same clock.
        cause: what was seen.
        node_lost: it went with its node, which is no failure of its own; spot machines come and go.
    """
    if node_lost:
        return Decision("restart", 0.0, f"{role} went with its node, starting it again where there is room: {cause}")
    recent = sum(1 for at in failed_at_s if now_s - at <= WINDOW_S)
    history = f"failure {recent} within {WINDOW_S:.0f} s"
    if recent > MAX_FAILURES:
        return Decision("stop", 0.0, f"{role} failed too often ({history}, {MAX_FAILURES} are allowed): {cause}")
    delay = 0.0 if recent <= 1 else min(2.0 ** (recent - 2), 30.0)
    return Decision("restart", delay, f"{role} failed ({history}), starting it again in {delay:g} s: {cause}")
