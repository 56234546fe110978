"""What a cluster can carry, by the service times of a profile.

An acted step costs every part some CPU time: its actor, the replay, and the learner by the replay ratio. A part that
never rests carries 1 / cost steps per second, and the slowest part bounds the run. The bound leaves queues out: pushes
in flight, draws made ahead and the rate limiter's slack keep the slowest part busy. Not modelled: networks, memory,
failures, evaluations.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from drqn_dist.errors import ConfigError
from drqn_dist.scaling.profile import Profile
from drqn_dist.scaling.report import by_key
from drqn_dist.scaling.settings import ClusterShape


class Part(StrEnum):
    """What can bound a run."""

    ACTORS, LEARNER, REPLAY, HEAD = "actors", "learner", "replay", "head cores"


_BUY = {
    Part.ACTORS: "more actors",
    Part.LEARNER: "a faster learner (a GPU, smaller batches), or fewer samples per insert",
    Part.REPLAY: "more replay shards",
    Part.HEAD: "more cores for the head",
}


@dataclass(frozen=True)
class Prediction:
    """What a cluster can carry."""

    actors: int
    envs_per_actor: int
    agent_steps_per_s: float
    updates_per_s: float
    use: dict[Part, float]
    """Share of each part's capacity that is in use; 1 for the part that bounds the run."""


@dataclass(frozen=True)
class Comparison:
    """A measured point beside its prediction from all other points."""

    actors: int
    envs_per_actor: int
    measured: float
    """Agent steps per second, the median of the repeats."""
    predicted: float
    error: float
    """Of the prediction, as a share of the measurement; positive where it is too fast."""


def predict(profile: Profile, actors: int, envs_per_actor: int, cluster: ClusterShape) -> Prediction:
    """The throughput of so many actors on such a cluster, with a learner if the profile has one.

    Raises:
        ConfigError: a shard would have no actor.
    """
    shards = cluster.shards or profile.shards
    if actors < shards:
        raise ConfigError(f"{actors} actors cannot fill {shards} shards; simulate more actors or fewer shards")
    roles = profile.roles()
    updates = profile.samples_per_insert / profile.batch_steps if roles.update_s else 0.0
    acting_s = roles.actor_step_s / envs_per_actor + roles.actor_env_s
    replay_s = profile.replay_cores(1.0, updates, envs_per_actor, roles.fragment_steps)
    learning_s = updates * roles.update_s / cluster.learner_speedup
    head_s = replay_s + learning_s + (0.0 if cluster.actor_cores else acting_s)
    head_cores = max(0.1, (cluster.head_cores or profile.cores) - roles.other_cores)
    use_per_step = {
        Part.ACTORS: acting_s / (actors * min(1.0, cluster.actor_cores or 1.0)),
        Part.LEARNER: learning_s,
        Part.REPLAY: replay_s / shards,
        Part.HEAD: head_s / head_cores,
    }
    speed = 1 / max(use_per_step.values())
    use = {part: speed * seconds for part, seconds in use_per_step.items()}
    return Prediction(actors, envs_per_actor, speed, updates * speed, use)


def compare(profile: Profile) -> list[Comparison]:
    """Every measured point beside its prediction on the measured machine, from the service times of all other
    points; nothing where there is one point alone."""
    machine, found = ClusterShape(actor_cores=0), []
    for key, group in by_key(profile.points).items():
        others = [point for point in profile.points if point.key != key]
        if not others:
            break
        predicted = predict(replace(profile, points=others), *key, machine).agent_steps_per_s
        measured = statistics.median(point.agent_steps_per_s for point in group)
        found.append(Comparison(*key, measured, predicted, predicted / measured - 1))
    return found


def simulate(profile: Profile, actors: Sequence[int], envs_per_actor: int, cluster: ClusterShape) -> dict[str, Any]:
    """What `--simulate` answers, JSON-able: predictions, advice for the largest of them, comparisons, their error in a
    sentence, and the costs that all of it is made of."""
    predictions, comparisons = [predict(profile, n, envs_per_actor, cluster) for n in actors], compare(profile)
    return {
        "cluster": asdict(cluster),
        "predictions": [asdict(prediction) for prediction in predictions],
        "advice": advice(predictions[-1]),
        "comparisons": [asdict(comparison) for comparison in comparisons],
        "error": error_sentence(comparisons),
        "costs": asdict(profile.replay) | asdict(profile.roles()),
    }


def advice(prediction: Prediction) -> str:
    """The bottleneck, how far all else is in use, and what to buy."""
    first, *rest = sorted(prediction.use, key=lambda part: -prediction.use[part])
    others = ", ".join(f"{part} {prediction.use[part]:.0%}" for part in rest)
    return (
        f"At {prediction.actors:,} actors x {prediction.envs_per_actor} environments the bottleneck is the {first} "
        f"(in use meanwhile: {others}). To go faster: {_BUY[first]}."
    )


def error_sentence(comparisons: Sequence[Comparison]) -> str:
    """The mean and the largest error."""
    if not comparisons:
        return "The error is unknown: the profile has one point alone; measure other numbers of actors."
    worst = max(comparisons, key=lambda comparison: abs(comparison.error))
    mean = statistics.fmean(abs(comparison.error) for comparison in comparisons)
    return (
        f"Each of {len(comparisons)} measured points is predicted from the others: off by {mean:.1%} on average, at "
        f"worst by {worst.error:+.1%} (at {worst.actors} actors x {worst.envs_per_actor} environments)."
    )
