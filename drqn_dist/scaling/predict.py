"""What a cluster can carry, by the CPU time that a measured run spent.

An acted step costs every part some CPU time: its actor, the replay, and the learner by the replay ratio. A part that
never rests carries 1 / cost steps per second, and the slowest part bounds the run. The bound leaves queues out: pushes
in flight, draws made ahead and the rate limiter's slack keep the slowest part busy. Not modelled: networks, memory,
failures, evaluations.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from drqn_dist.errors import ConfigError
from drqn_dist.scaling.points import Point
from drqn_dist.scaling.report import by_key
from drqn_dist.scaling.settings import ClusterShape

ADVICE = {
    "actors": "more actors",
    "learner": "a faster learner (a GPU, smaller batches), or fewer samples per insert",
    "replay": "more replay shards",
    "head cores": "more cores for the head",
}
"""What can bound a run, and what to buy then."""


@dataclass(frozen=True)
class Costs:
    """What actors with one number of environments spent: CPU seconds of each role's processes, all their threads and
    Ray's part included."""

    cores: int
    """Of the measured machine."""
    shards: int
    updates_per_step: float
    """Updates that an agent step asks for, by the replay ratio; 0 without a learner."""
    acting_s: float
    """The actor's, of an agent step."""
    replay_s: float
    """The replay's, of an agent step, its share of what is drawn included. A shard that is called seldom spends more on
    each call than one that is kept busy, so this is on the safe side."""
    update_s: float
    """Of an update, with all that belongs to it; 0 without a learner."""
    other_cores: float
    """CPU seconds per second of all else: Ray's own processes, the driver, a learner at rest."""

    @classmethod
    def of(cls, settings: Mapping[str, Any], points: Sequence[Point]) -> Self:
        """Medians over all points: a machine whose speed jumps for a while would draw a mean along.

        Args:
            settings: those of the sweep, as `sweep.json` keeps them.
            points: of one number of environments per actor.

        Raises:
            ConfigError: nothing happened in one of them.
        """
        for point in points:
            if not point.agent_steps_per_s or (point.learner and not point.updates_per_s):
                raise ConfigError(
                    f"{point.actors} actors x {point.envs_per_actor} environments made no step or no update in "
                    f"{point.seconds:.1f} s; measure longer (--seconds, into another --out)"
                )
        learning, replay = settings["config"]["learner"], settings["config"]["replay"]
        batch_steps = learning["batch_windows"] * learning["unroll_steps"]
        trained = [point for point in points if point.learner]
        return cls(
            cores=settings["machine"]["usable_cores"],
            shards=replay["shards"],
            updates_per_step=replay["samples_per_insert"] / batch_steps if trained else 0.0,
            acting_s=statistics.median(p.cores["actors"] / p.agent_steps_per_s for p in points),
            replay_s=statistics.median(p.cores["replay"] / p.agent_steps_per_s for p in points),
            update_s=statistics.median(p.cores["learner"] / p.updates_per_s for p in trained) if trained else 0.0,
            other_cores=statistics.median(map(_other_cores, points)),
        )


@dataclass(frozen=True)
class Prediction:
    """What a cluster can carry."""

    actors: int
    agent_steps_per_s: float
    updates_per_s: float
    use: dict[str, float]
    """Share of each part's capacity that is in use; 1 for the part that bounds the run."""


def predict(costs: Costs, actors: int, cluster: ClusterShape) -> Prediction:
    """The throughput of so many actors on such a cluster, with a learner if the sweep had one.

    Raises:
        ConfigError: a shard would have no actor.
    """
    shards = cluster.shards or costs.shards
    if actors < shards:
        raise ConfigError(f"{actors} actors cannot fill {shards} shards; simulate more actors or fewer shards")
    learning_s = costs.updates_per_step * costs.update_s / cluster.learner_speedup
    head_s = costs.replay_s + learning_s + (0.0 if cluster.actor_cores else costs.acting_s)
    use_per_step = {
        "actors": costs.acting_s / (actors * min(1.0, cluster.actor_cores or 1.0)),
        "learner": learning_s,
        "replay": costs.replay_s / shards,
        "head cores": head_s / max(0.1, (cluster.head_cores or costs.cores) - costs.other_cores),
    }
    speed = 1 / max(use_per_step.values())
    use = {part: speed * seconds for part, seconds in use_per_step.items()}
    return Prediction(actors, speed, costs.updates_per_step * speed, use)


def compare(settings: Mapping[str, Any], points: Sequence[Point]) -> list[dict[str, Any]]:
    """Every measured point (the median of its repeats) beside its prediction on the measured machine, from the costs of
    all other numbers of actors with as many environments; nothing for a point without such others.

    Returns:
        actors, envs_per_actor, measured and predicted agent steps per second, error: of the prediction, as a share of
        the measurement; positive where it is too fast.
    """
    found = []
    for (actors, envs), group in by_key(points).items():
        if others := [p for p in points if p.envs_per_actor == envs and p.actors != actors]:
            predicted = predict(Costs.of(settings, others), actors, ClusterShape(actor_cores=None)).agent_steps_per_s
            measured = statistics.median(point.agent_steps_per_s for point in group)
            row = {"actors": actors, "envs_per_actor": envs, "measured": measured, "predicted": predicted}
            found.append(row | {"error": predicted / measured - 1})
    return found


def simulate(
    settings: Mapping[str, Any],
    points: Sequence[Point],
    actors: Sequence[int],
    envs_per_actor: int,
    cluster: ClusterShape,
) -> dict[str, Any]:
    """What `--simulate` answers, JSON-able: predictions, advice for the largest of them, comparisons, their error in a
    sentence, and the costs that all of it is made of.

    Raises:
        ConfigError: no point has so many environments per actor, or nothing happened in one.
    """
    alike = [point for point in points if point.envs_per_actor == envs_per_actor]
    if not alike:
        measured = ", ".join(map(str, sorted({point.envs_per_actor for point in points}))) or "none"
        raise ConfigError(
            f"nothing was measured with {envs_per_actor} environments per actor, only with {measured}; name one of "
            "these (--envs-per-actor), or measure some"
        )
    costs, comparisons = Costs.of(settings, alike), compare(settings, points)
    predictions = [predict(costs, n, cluster) for n in actors]
    return {
        "envs_per_actor": envs_per_actor,
        "cluster": asdict(cluster),
        "predictions": [asdict(prediction) for prediction in predictions],
        "advice": advice(predictions[-1]),
        "comparisons": comparisons,
        "error": error_sentence(comparisons),
        "costs": asdict(costs),
    }


def simulated_text(result: dict[str, Any]) -> str:
    """The answer of `simulate` for a person."""
    lines = ["actors     steps/s  updates/s" + "".join(f"{part:>12}" for part in ADVICE)]
    for p in result["predictions"]:
        use = "".join(f"{p['use'][part]:>12.0%}" for part in ADVICE)
        lines.append(f"{p['actors']:>6,} {p['agent_steps_per_s']:>11,.0f}{p['updates_per_s']:>11.1f}{use}")
    lines += [result["advice"], "actors  envs  measured  predicted   error"]
    for c in result["comparisons"]:
        place = f"{c['actors']:>6} {c['envs_per_actor']:>5}"
        lines.append(f"{place} {c['measured']:>9,.0f} {c['predicted']:>10,.0f} {c['error']:>+7.1%}")
    return "\n".join([*lines, result["error"]])


def advice(prediction: Prediction) -> str:
    """The bottleneck, how far all else is in use, and what to buy."""
    first, *rest = sorted(prediction.use, key=lambda part: -prediction.use[part])
    others = ", ".join(f"{part} {prediction.use[part]:.0%}" for part in rest)
    return (
        f"At {prediction.actors:,} actors the bottleneck is the {first} "
        f"(in use meanwhile: {others}). To go faster: {ADVICE[first]}."
    )


def error_sentence(comparisons: Sequence[dict[str, Any]]) -> str:
    """The mean and the largest error."""
    if not comparisons:
        return "The error is unknown: there is one number of actors alone; measure others."
    worst = max(comparisons, key=lambda comparison: abs(comparison["error"]))
    mean = statistics.fmean(abs(comparison["error"]) for comparison in comparisons)
    return (
        f"Each of {len(comparisons)} measured points is predicted from the others: off by {mean:.1%} on average, at "
        f"worst by {worst['error']:+.1%} (at {worst['actors']} actors x {worst['envs_per_actor']} environments)."
    )


def _other_cores(point: Point) -> float:
    known = point.cores["actors"] + point.cores["replay"] + (point.cores["learner"] if point.learner else 0.0)
    return max(0.0, point.cores["machine"] - known)
