"""Calls to a Ray actor as fast as it answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import ray


def answers(calls: Iterable[Any], in_flight: int) -> list[Any]:
    """Those of Ray calls, of which at most so many are under way at once: enough to keep the called busy, few enough
    not to pile up.

    Args:
        calls: references; each call is made when it is taken from here.
    """
    waiting: deque[Any] = deque()
    found = []
    for call in calls:
        waiting.append(call)
        if len(waiting) >= in_flight:
            found.append(ray.get(waiting.popleft()))
    return found + ray.get(list(waiting))
