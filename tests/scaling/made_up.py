"""Points and costs with round numbers."""

from __future__ import annotations

from typing import Any

from drqn_dist.scaling.points import Point
from drqn_dist.scaling.predict import Costs

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


def settings(cores: int = 2) -> dict[str, Any]:
    """A machine of so many cores; updates have 80 steps at 8 samples per insert."""
    config = {
        "learner": {"batch_windows": 8, "unroll_steps": 10},
        "replay": {"samples_per_insert": 8.0, "shards": 1},
        "actor": {"envs_per_actor": 16},
    }
    return {"config": config, "machine": {"usable_cores": cores}}


def costs(*points: Point, cores: int = 2) -> Costs:
    return Costs.of(settings(cores), points)
