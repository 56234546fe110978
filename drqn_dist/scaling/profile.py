"""Service times of a measured pipeline: `profile.json`, what a prediction is made of."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize

from drqn_dist.config import TrainConfig, from_dict
from drqn_dist.errors import ConfigError, RunFolderError
from drqn_dist.scaling.points import Point


@dataclass(frozen=True)
class ReplayCosts:
    """CPU seconds of a replay shard's process, Ray's part included, while it is kept busy."""

    push_call_s: float
    """Of a push, whatever it carries."""
    fragment_s: float
    """Of each fragment in it, besides."""
    sample_call_s: float
    """Of a call that draws several batches."""
    priorities_call_s: float
    """Of a call that returns the priorities of as many updates."""
    batches_per_call: int


@dataclass(frozen=True)
class RoleCosts:
    """CPU seconds that the processes of actors and learner spend, all their threads included."""

    actor_step_s: float
    """Of a batched step, whatever the number of environments. All that an actor does is in here, pushes too."""
    actor_env_s: float
    """Of a batched step for each environment, besides."""
    update_s: float
    """Of an update, with all that belongs to it, the decoding of new frames too; 0 without a learner."""
    fragment_steps: float
    """Mean agent steps of a fragment; those at the end of an episode are shorter."""
    other_cores: float
    """CPU seconds per second of all that has no cost here: Ray's own processes, the driver, roles at rest."""


@dataclass(frozen=True)
class Profile:
    """A measured pipeline."""

    cores: int
    """Of the measured machine."""
    shards: int
    envs_per_actor: int
    """Of the configuration; the points may have others."""
    push_period_steps: int
    """Batched steps between two pushes of an actor."""
    batch_steps: int
    """Trained steps of an update."""
    samples_per_insert: float
    replay: ReplayCosts
    machine: dict[str, Any] = field(default_factory=dict)
    """Processor and memory, in words."""
    points: Sequence[Point] = ()
    """Everything that was measured."""

    @classmethod
    def of(cls, config: TrainConfig, points: Sequence[Point], replay: ReplayCosts, machine: dict[str, Any]) -> Profile:
        """`machine` describes the measured one, with `usable_cores`."""
        return cls(
            cores=int(machine["usable_cores"]),
            shards=config.replay.shards,
            envs_per_actor=config.actor.envs_per_actor,
            push_period_steps=config.push_period,
            batch_steps=config.learner.batch_windows * config.window.unroll,
            samples_per_insert=config.replay.samples_per_insert,
            replay=replay,
            machine=machine,
            points=points,
        )

    def roles(self) -> RoleCosts:
        """Medians over all points: a machine whose speed jumps for a while would draw a mean along.

        Raises:
            ConfigError: there are no points, or one in which nothing happened.
        """
        points = self.points
        if not points:
            raise ConfigError("there are no measured points to take service times from; measure some")
        for point in points:
            if not (point.agent_steps_per_s and point.fragments_per_s and (point.updates_per_s or not point.learner)):
                raise ConfigError(
                    f"{point.actors} actors x {point.envs_per_actor} environments made no step, no fragment or no "
                    f"update in {point.seconds:.1f} s; measure longer (--seconds, into another --out)"
                )
        trained = [point for point in points if point.learner]
        fragment_steps = statistics.median(point.agent_steps_per_s / point.fragments_per_s for point in points)
        step_s, env_s = _step_costs(points)
        return RoleCosts(
            actor_step_s=step_s,
            actor_env_s=env_s,
            update_s=statistics.median(p.cores["learner"] / p.updates_per_s for p in trained) if trained else 0.0,
            fragment_steps=fragment_steps,
            other_cores=statistics.median(self._other_cores(point, fragment_steps) for point in points),
        )

    def replay_cores(
        self, steps_per_s: float, updates_per_s: float, envs_per_actor: int, fragment_steps: float
    ) -> float:
        """CPU seconds per second that all shards together need for so many acted steps and updates a second."""
        cost = self.replay
        fragments_per_push = max(1.0, envs_per_actor * self.push_period_steps / fragment_steps)
        fragment_s = cost.fragment_s + cost.push_call_s / fragments_per_push
        update_s = (cost.sample_call_s + cost.priorities_call_s) / cost.batches_per_call
        return steps_per_s / fragment_steps * fragment_s + updates_per_s * update_s

    def _other_cores(self, point: Point, fragment_steps: float) -> float:
        known = point.cores["actors"] + (point.cores["learner"] if point.learner else 0.0)
        known += self.replay_cores(point.agent_steps_per_s, point.updates_per_s, point.envs_per_actor, fragment_steps)
        return max(0.0, point.cores["machine"] - known)


def read_profile(path: Path) -> Profile:
    """
    Raises:
        RunFolderError: it cannot be read or is no profile.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        profile = from_dict(Profile, values | {"points": [from_dict(Point, point) for point in values["points"]]})
        profile.roles()
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror}; name a profile.json that scale wrote") from error
    except (ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
        raise RunFolderError(f"{path} is no usable profile: {error}") from error
    return profile


def _step_costs(points: Sequence[Point]) -> tuple[float, float]:
    """CPU seconds of a batched step: the fixed part and the part per environment, both ≥ 0, by least squares of
    relative errors; all is per environment where only one number of them was measured."""
    seconds: dict[int, list[float]] = {}
    for point in points:
        batched_steps_per_s = point.agent_steps_per_s / point.envs_per_actor
        seconds.setdefault(point.envs_per_actor, []).append(point.cores["actors"] / batched_steps_per_s)
    envs, cost = np.array(list(seconds), np.float64), np.array([statistics.median(s) for s in seconds.values()])
    if len(envs) == 1:
        return 0.0, float(cost[0] / envs[0])
    (fixed, per_env), _ = optimize.nnls(np.stack([1 / cost, envs / cost], axis=1), np.ones_like(cost))
    return float(fixed), float(per_env)
