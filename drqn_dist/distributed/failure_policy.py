"""What to do when a role dies: a pure decision, carried out by the supervisor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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
