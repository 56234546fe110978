"""What simulations say together: where parts saturate, what to buy next, how far off the model is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from drqn_dist.errors import ConfigError
from drqn_dist.scaling.points import Point, point_from
from drqn_dist.scaling.profile import Profile
from drqn_dist.scaling.report import WAITS, by_key
from drqn_dist.scaling.settings import ClusterShape
from drqn_dist.scaling.simulate import Prediction, one_machine, simulate

FULL = 0.9
"""A part in use for this share of the time has nothing to spare."""
BLOCKED = 0.05
"""Actors that wait for more than this share of their time are held up by others."""

_BUY = {
    "head cores": "more cores for the head",
    "learner": "a faster learner (a GPU, or smaller batches)",
    "loader": "more loaders (learner.loaders)",
    "replay shard": "more replay shards",
    "head link": "a faster network for the head",
    "actor cores": "more actor cores",
}


@dataclass(frozen=True)
class Saturation:
    """Where parts reach their limit, in agent steps per second, and the numbers of actors that reach it."""

    shard_steps_per_s: float
    """One replay shard alone on a core; with a learner its samples and priorities included."""
    shard_actors: float
    shard_updates_per_s: float
    """Updates that the same shard feeds meanwhile."""
    learner_updates_per_s: float
    learner_steps_per_s: float
    """Acted steps that the learner can keep up with at its replay ratio."""
    learner_actors: float


def saturation(profile: Profile, envs_per_actor: int, cluster: ClusterShape, learner: bool) -> Saturation:
    """From service times alone, without queueing; an actor is one with a core for itself."""
    costs, price, sizes, config = profile.costs, profile.shard, profile.sizes, profile.config
    step = (costs.actor_fixed_s + envs_per_actor * costs.actor_per_env_s) * _crowded(profile) + costs.actor_idle_s
    actor_steps_per_s = envs_per_actor / step
    batches_per_step = config.replay.samples_per_insert / (config.learner.batch_windows * config.window.unroll)
    fragments = profile.burst(envs_per_actor)[1]
    per_step = (price.push_s + price.push_call_s / fragments) / sizes.fragment_steps
    if learner:
        per_step += batches_per_step * (price.sample_s + price.priorities_s / profile.batches_per_call)
    updates_per_s = cluster.learner_speedup / costs.learner_s if learner else 0.0
    return Saturation(
        shard_steps_per_s=1 / per_step,
        shard_actors=1 / per_step / actor_steps_per_s,
        shard_updates_per_s=batches_per_step / per_step if learner else 0.0,
        learner_updates_per_s=updates_per_s,
        learner_steps_per_s=updates_per_s / batches_per_step,
        learner_actors=updates_per_s / batches_per_step / actor_steps_per_s,
    )


def shard_sentence(profile: Profile, limit: Saturation, envs_per_actor: int) -> str:
    """What a replay shard costs and carries."""
    price = profile.shard
    said = (
        f"A replay shard takes {1e3 * price.push_call_s:.2f} ms of CPU for a push and {1e3 * price.push_s:.2f} ms for "
        f"each fragment in it, {1e3 * price.sample_s:.2f} ms for a batch of windows, {1e3 * price.priorities_s:.2f} ms "
        f"for priorities: with a core to itself it carries {limit.shard_steps_per_s:,.0f} steps/s, "
        f"{limit.shard_actors:,.1f} actors of {envs_per_actor} environments with a core each"
    )
    if not limit.shard_updates_per_s:
        return f"{said}."
    learners = limit.shard_updates_per_s / limit.learner_updates_per_s
    return f"{said}, and the {limit.shard_updates_per_s:,.0f} updates/s that belong to them, {learners:,.1f} learners."


def advice(prediction: Prediction, limit: Saturation) -> str:
    """What to buy next, with the figures behind it."""
    use, n = prediction.use, prediction.actors
    known = f"one replay shard carries {limit.shard_actors:,.0f} actors"
    if prediction.learner:
        known += f", the learner {limit.learner_actors:,.1f}"
    if prediction.actors_blocked > BLOCKED:
        behind = [part for part in _BUY if part != "actor cores" and (part != "head cores" or use[part] >= FULL)]
        part = max(behind, key=lambda name: round(use[name], 2))  # without cores to spare all others seem busy
        if prediction.learner and use[part] < FULL:
            return (
                f"At {n:,} actors raise learner.prefetch_batches, so that more loaders work at once: no part is in use "
                f"for more than {use[part]:.0%} of the time (the {part}), yet the learner waits "
                f"{prediction.learner_waits:.0%} of its time and the actors {prediction.actors_blocked:.0%} ({known})."
            )
        return (
            f"At {n:,} actors buy {_BUY[part]}: the {part} is in use {use[part]:.0%} of the time, and the actors wait "
            f"{prediction.actors_blocked:.0%} of theirs ({known})."
        )
    waits = f", the learner waits {prediction.learner_waits:.0%} of its time" if prediction.learner else ""
    return (
        f"At {n:,} actors buy {_BUY['actor cores']}: theirs are in use {use['actor cores']:.0%} of the time, nobody "
        f"else holds them up{waits} ({known})."
    )


def predict(
    profile: Profile, actors: Sequence[int], envs_per_actor: int, cluster: ClusterShape, learner: bool
) -> dict[str, Any]:
    """Simulates each number of actors.

    Returns:
        predictions, saturation, advice (for the largest number), cluster; JSON-able.

    Raises:
        ConfigError: a learner is asked for, but the profile was measured without; or a shard would have no actor.
    """
    if learner and not profile.trains:
        raise ConfigError("the profile was measured without a learner; add --no-learner, or measure with one")
    shards = cluster.shards or profile.config.replay.shards
    if min(actors) < shards:
        raise ConfigError(f"{min(actors)} actors cannot fill {shards} shards; simulate more of them, or fewer shards")
    predictions = [simulate(profile, n, envs_per_actor, cluster, learner) for n in actors]
    limit = saturation(profile, envs_per_actor, cluster, learner)
    return {
        "predictions": [asdict(prediction) for prediction in predictions],
        "saturation": asdict(limit),
        "shard": shard_sentence(profile, limit, envs_per_actor),
        "advice": advice(predictions[-1], limit),
        "cluster": asdict(cluster),
    }


@dataclass(frozen=True)
class Comparison:
    """A measured point beside its simulation."""

    actors: int
    envs_per_actor: int
    learner: bool
    fitted: bool
    """The profile's costs were taken from it, so it says nothing about the model."""
    measured: float
    """Agent steps per second, the median of the repeats."""
    least: float
    greatest: float
    simulated: float
    error: float
    """Of the simulation, as a share of the measurement; positive where it is too fast."""
    updates_measured: float
    updates_simulated: float
    lag_measured: float | None
    """Policy lag in updates; None where nobody trained."""
    lag_simulated: float | None


def validate(profile: Profile, points: Sequence[Point]) -> list[Comparison]:
    """Simulates every point on the machine that the profile was measured on: not those over several nodes, and those
    with a learner only if the profile knows one. Measurements that the profile was fitted to are only compared where
    there are no others of that point."""
    fitted = [point for values in profile.points if (point := point_from(values)).key in profile.fitted_keys]
    found = []
    for key, group in by_key(points).items():
        actors, envs, nodes, learner = key
        if nodes > 1 or (learner and not profile.trains):
            continue
        unseen = [point for point in group if point not in fitted]
        group = unseen or group
        simulated = simulate(profile, actors, envs, one_machine(profile), learner)
        speeds = [point.agent_steps_per_s for point in group]
        measured = statistics.median(speeds)
        error = simulated.agent_steps_per_s / measured - 1 if measured else math.inf
        found.append(
            Comparison(
                actors,
                envs,
                learner,
                not unseen,
                measured,
                min(speeds),
                max(speeds),
                simulated.agent_steps_per_s,
                error,
                statistics.median(point.updates_per_s for point in group),
                simulated.updates_per_s,
                statistics.median(lags)
                if (lags := [p.policy_lag for p in group if p.policy_lag is not None])
                else None,
                simulated.policy_lag if learner else None,
            )
        )
    return found


def extrapolation(profile: Profile, envs_per_actor: int) -> str:
    """What speaks against a prediction with so many environments per actor; empty if nothing does."""
    measured = sorted({point_from(values).envs_per_actor for values in profile.points})
    if not measured or measured[0] <= envs_per_actor <= measured[-1]:
        return ""
    return (
        f"The profile knows actors of {', '.join(map(str, measured))} environments: what a step of {envs_per_actor} "
        "costs is extrapolated; measure them (--envs-per-actor), or simulate those."
    )


def caution(profile: Profile) -> str:
    """What speaks against the profile's prices; empty if nothing does."""
    fitted = profile.fitted_keys
    fewest = min((key[0] for key in fitted), default=0)  # what the most were taken for, waiting does no harm to
    taken = [point for values in profile.points if (point := point_from(values)).key in fitted]
    waits = max((point.actor_time["push"] for point in taken if point.actors == fewest), default=0.0)
    if waits <= WAITS:
        return ""
    return (
        f"The actors waited up to {waits:.0%} of their time in the points that the prices are taken from, so what "
        "their processes need at rest counts as the price of few steps: measure with a lower replay.samples_per_insert."
    )


def verdict(comparisons: Sequence[Comparison], measured: int) -> str:
    """The greatest error over the points that the profile was not fitted to, in one sentence.

    Args:
        measured: points that there were, of which some may not have been compared.
    """
    if not comparisons:
        return (
            f"No point to validate with: all {measured} were measured over several nodes, or with a learner that the "
            "profile does not know."
            if measured
            else "No point to validate with: the file holds none."
        )
    unseen = [c for c in comparisons if not c.fitted]
    if not unseen:
        return "No point to validate with: the profile was fitted to all of them; measure other numbers of actors."
    worst = max(unseen, key=lambda c: abs(c.error))
    mean = statistics.fmean(abs(c.error) for c in unseen)
    with_learner = "with" if worst.learner else "without"
    return (
        f"Over {len(unseen)} points that it was not fitted to, the simulation is off by {mean:.1%} on average and by "
        f"{worst.error:+.1%} at worst (at {worst.actors} actors x {worst.envs_per_actor} environments {with_learner} "
        "a learner)."
    )


def _crowded(profile: Profile) -> float:
    return profile.crowding.slowdown(profile.cores, profile.cores)
