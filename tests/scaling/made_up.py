"""Points and profiles with round numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drqn_dist.scaling.points import Point
from drqn_dist.scaling.predict import Profile

PARTS = ("env", "policy", "build", "encode", "push", "weights")


def point(actors: int = 1, envs: int = 16, learner: bool = False, repeat: int = 0, **changes: Any) -> Point:
    """A machine of which half is busy; 0.8 ms of CPU for a step of one environment, 36 ms for an update."""
    values: dict[str, Any] = {
        "seconds": 10.0,
        "agent_steps_per_s": 1_000.0 * actors,
        "fragments_per_s": 50.0 * actors,
        "updates_per_s": 25.0 if learner else 0.0,
        "samples_per_insert": 8.0 if learner else None,
        "policy_lag": 12.0 if learner else None,
        "cores": {"actors": 0.8 * actors, "learner": 0.9 if learner else 0.0, "replay": 0.05, "ray": 0.05}
        | {"machine": 1.0},
        "actor_time": dict.fromkeys(PARTS, 0.0) | {"env": 0.5, "policy": 0.4, "other": 0.1},
        "learner_time": {"wait": 0.05, "train": 0.9, "other": 0.05},
    }
    return Point(actors, envs, learner, repeat, **(values | changes))


def profile(points: Sequence[Point], **changes: Any) -> Profile:
    """Two cores; updates have 80 steps at 8 samples per insert."""
    values: dict[str, Any] = {"cores": 2, "shards": 1, "envs_per_actor": 16, "batch_steps": 80}
    return Profile(**(values | {"samples_per_insert": 8.0} | changes), points=points)
