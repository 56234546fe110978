"""Points and profiles with round numbers."""

from __future__ import annotations

from typing import Any

from drqn_dist.presets import preset
from drqn_dist.scaling.parts import UNCROWDED, Crowding
from drqn_dist.scaling.points import Point
from drqn_dist.scaling.profile import Costs, Profile, ShardPrice, Sizes

PARTS = ("env", "inference", "build", "encode", "push", "weights")


def point(actors: int = 1, envs: int = 16, learner: bool = False, repeat: int = 0, **changes: Any) -> Point:
    """A machine of which half is busy; actors that spend half of their time in environments, half in the network."""
    values: dict[str, Any] = {
        "nodes": 1,
        "seconds": 10.0,
        "agent_steps_per_s": 1_000.0 * actors,
        "frames_per_s": 4_000.0 * actors,
        "updates_per_s": 25.0 if learner else 0.0,
        "samples_per_insert": 8.0 if learner else None,
        "sample_age": 100.0 if learner else None,
        "policy_lag": 12.0 if learner else None,
        "cores": {"actors": 0.8, "replay": 0.05, "loaders": 0.1, "learner": 0.9, "ray": 0.05, "machine": 1.0},
        "bytes_per_s": {"pushes": 100_000.0, "samples": 200_000.0, "batches": 1e7, "weights": 1e6},
        "actor_time": dict.fromkeys(PARTS, 0.0) | {"env": 0.5, "inference": 0.4, "other": 0.1},
        "loader_time": {"wait": 0.1, "decode": 0.1, "idle": 0.8},
        "learner_time": {"wait": 0.05, "train": 0.9, "publish": 0.01, "other": 0.04},
        "transfer": 0.0,
        "per_s": {"fragments": 50.0, "batches": 25.0, "calls": 31.0, "push": 50.0, "sample": 25.0, "priorities": 12.5},
        "replay_own_cpu_s": {"push": 0.0001, "sample": 0.0004, "priorities": 0.0001},
        "cv": {"actor": 0.2, "learner": 0.1},
        "call_s": 0.001,
    }
    return Point(actors, envs, learner=learner, repeat=repeat, **(values | changes))


def profile(cores: int = 2, crowding: Crowding = UNCROWDED, config: Any = None, **costs: float) -> Profile:
    """1,000 agent steps/s of one actor with 16 environments, 50 fragments/s, 30 updates/s; nothing varies, and calls
    cost nothing beside what they carry. The costs are of `Costs` or of `ShardPrice`."""
    price = {"push_call_s": 0.0, "push_s": 0.001, "sample_s": 0.0, "priorities_s": 0.0}
    price |= {name: costs.pop(name) for name in list(costs) if name in price}
    chosen = {
        "actor_fixed_s": 0.0,
        "actor_per_env_s": 0.001,
        "actor_idle_s": 0.0,
        "loader_s": 0.001,
        "learner_s": 1 / 30,
        "actor_cv": 0.0,
        "learner_cv": 0.0,
        "other_cores": 0.0,
        "call_s": 0.0,
    } | costs
    sizes = Sizes(
        fragment_bytes=3_000, sample_bytes=50_000, batch_bytes=1_000_000, weight_bytes=2_000_000, fragment_steps=20
    )
    return Profile(config or preset("pong-cpu"), cores, crowding, 2, Costs(**chosen), ShardPrice(**price), sizes)
