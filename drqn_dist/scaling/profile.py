"""What a simulation needs to know of a measured pipeline: `profile.json`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize

from drqn_dist.config import TrainConfig, from_dict
from drqn_dist.errors import ConfigError, RunFolderError
from drqn_dist.scaling.parts import Crowding, sharing
from drqn_dist.scaling.points import Key, Point, point_from

BUSY = 0.9
"""A machine with more than this share of its cores at work has none to spare."""
SHARING = 0.5
"""Where a smaller share of the processes takes turns, it does not show what they cost."""
SPARE_CORES = 0.7
"""With so many cores idle nobody waits for one."""


@dataclass(frozen=True)
class Costs:
    """CPU seconds on a core whose neighbours are idle. Everything that a process does is counted, Ray's threads in it
    included, so these are its capacity."""

    actor_fixed_s: float
    """Of one batched actor step, whatever the number of environments; all of the actor's work is in here, fragments,
    pushes and weights too."""
    actor_per_env_s: float
    """Of one batched actor step, for each environment."""
    actor_idle_s: float
    """Seconds of one batched actor step beside them: hand-overs between threads."""
    loader_s: float
    """Of a loader, for a batch."""
    learner_s: float
    """Of the learner, for an update with all that belongs to it."""
    actor_cv: float
    """Standard deviation over mean of one batched actor step."""
    learner_cv: float
    """The same of one update."""
    other_cores: float
    """CPU seconds per second of all that has no price here: Ray's own processes, the driver, and what the roles'
    processes do while nobody calls them."""
    call_s: float
    """Seconds of a call between processes of one node."""


@dataclass(frozen=True)
class ShardPrice:
    """CPU seconds of one replay shard's process on a core whose neighbours are idle, Ray's part included, while it is
    kept busy; `shard.measure_shard` measures it."""

    push_call_s: float
    """Of a push, whatever it carries."""
    push_s: float
    """Of each fragment in it."""
    sample_s: float
    """Of a batch, its part of the call included."""
    priorities_s: float
    """Of a call with priorities."""
    rest_cores: float = 0.0
    """CPU seconds per second while nobody calls."""
    fragments_per_push: int = 1
    """In the following."""
    fragments_per_s: float = 0.0
    """That it took from one caller on this machine."""


@dataclass(frozen=True)
class Sizes:
    """Mean sizes."""

    fragment_bytes: float
    sample_bytes: float
    """A batch as the replay gives it: compressed."""
    batch_bytes: float
    """A batch as the learner takes it."""
    weight_bytes: float
    fragment_steps: float
    """Agent steps of one fragment; those at the end of an episode are shorter."""


@dataclass(frozen=True)
class Profile:
    """A measured pipeline."""

    config: TrainConfig
    """But for its actors and environments. Windows, batches, replay ratio, publish and pull periods are in here."""
    cores: int
    """Of the machine that was measured."""
    crowding: Crowding
    batches_per_call: int
    """Batches that a loader gives, and updates whose priorities go back, in one call."""
    costs: Costs
    shard: ShardPrice
    sizes: Sizes
    machine: dict[str, Any] = field(default_factory=dict)
    """Processor and memory, in words."""
    fitted_to: list[list[Any]] = field(default_factory=list)
    """The points (actors, environments per actor, nodes, with a learner) that costs and sizes are taken from."""
    points: list[dict[str, Any]] = field(default_factory=list)
    """Everything that was measured."""

    @property
    def fitted_keys(self) -> set[Key]:
        return {(int(actors), int(envs), int(nodes), bool(trains)) for actors, envs, nodes, trains in self.fitted_to}

    def burst(self, envs_per_actor: int) -> tuple[float, float]:
        """Batched steps between two pushes that carry anything, and fragments in each, on average."""
        return _burst(self.config, self.sizes.fragment_steps, envs_per_actor)

    @property
    def trains(self) -> bool:
        """Whether the learner was measured."""
        return self.costs.learner_s > 0


def make_profile(
    config: TrainConfig,
    points: Sequence[Point],
    cores: int,
    neighbours: float,
    shard: ShardPrice,
    batches_per_call: int,
    weight_bytes: int,
    machine: dict[str, Any],
) -> Profile:
    """The costs and sizes behind measured points.

    They are taken from the points with the fewest nodes and actors, and there from the fewest and the most
    environments per actor. What turns on a core cost is taken from the same environments with the most actors, if
    there are more processes than cores. All others are left to validate a simulation with.

    Args:
        cores, neighbours: of this machine (`Crowding`).

    Raises:
        ConfigError: there are no points.
    """
    if not points:
        raise ConfigError("there are no measured points to make a profile of; measure some")
    fewest = min((point.nodes, point.actors) for point in points)
    smallest = [point for point in points if (point.nodes, point.actors) == fewest]
    envs = sorted({point.envs_per_actor for point in smallest})
    chosen = [point for point in smallest if point.envs_per_actor in (envs[0], envs[-1])]
    trained = [point for point in chosen if point.learner]
    for point in chosen:
        updates = min(point.updates_per_s, point.per_s["batches"]) if point.learner else 1.0
        for what, count in (("step", point.agent_steps_per_s), ("update", updates)):
            if not count:
                raise ConfigError(
                    f"no {what} was made in the {point.seconds:.1f} s that {point.actors} actors x "
                    f"{point.envs_per_actor} environments were measured, so it has no price; measure longer "
                    "(--seconds, into another --out)"
                )
    alone = Crowding(neighbours)
    slow = {id(point): alone.slowdown(point.cores["machine"], cores) for point in chosen}

    fragment_steps = _middle(
        [p.agent_steps_per_s / p.per_s["fragments"] for p in chosen if p.per_s["fragments"]]
    ) or float(config.window.fragment)
    fixed, per_env = _affine(
        [point.envs_per_actor for point in chosen],
        [point.cores["actors"] * _steps_s(point) / slow[id(point)] for point in chosen],
    )
    costs = Costs(
        actor_fixed_s=fixed,
        actor_per_env_s=per_env,
        actor_idle_s=_idle(chosen, cores),
        loader_s=_middle(
            [p.cores["loaders"] / p.per_s["batches"] / slow[id(p)] for p in trained if p.per_s["batches"]]
        ),
        learner_s=_middle([p.cores["learner"] / p.updates_per_s / slow[id(p)] for p in trained if p.updates_per_s]),
        actor_cv=_middle([point.cv["actor"] for point in chosen]),
        learner_cv=_middle([point.cv["learner"] for point in trained]),
        other_cores=_middle(
            [_other_cores(point, shard, _burst(config, fragment_steps, point.envs_per_actor)[1]) for point in chosen]
        ),
        call_s=min(point.call_s for point in chosen),
    )
    sizes = Sizes(
        fragment_bytes=_per(chosen, "pushes", "fragments"),
        sample_bytes=_per(trained, "samples", "batches"),
        batch_bytes=_per(trained, "batches", "batches"),
        weight_bytes=float(weight_bytes),
        fragment_steps=fragment_steps,
    )
    most = max(point.actors for point in points if point.nodes == fewest[0])
    crowded = [
        p for p in points if (p.nodes, p.actors) == (fewest[0], most) and p.envs_per_actor in (envs[0], envs[-1])
    ]
    shares = {id(point): sharing(_runnable(point, config.learner.loaders), cores) for point in crowded}
    crowded = [point for point in crowded if shares[id(point)] > SHARING]
    turns = _middle([_dearer(point, costs, alone.slowdown(cores, cores)) / shares[id(point)] for point in crowded])
    chosen += [point for point in crowded if point not in chosen]
    return Profile(
        config=config,
        cores=cores,
        crowding=Crowding(neighbours, max(0.0, turns)),
        batches_per_call=batches_per_call,
        costs=costs,
        shard=shard,
        sizes=sizes,
        machine=machine,
        fitted_to=[list(key) for key in sorted({point.key for point in chosen})],
        points=[asdict(point) for point in points],
    )


def write_profile(profile: Profile, path: Path) -> None:
    """
    Raises:
        RunFolderError: it cannot be written.
    """
    try:
        path.write_text(json.dumps(asdict(profile), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror}; choose another --out") from error


def read_profile(path: Path) -> Profile:
    """
    Raises:
        RunFolderError: it cannot be read or is no profile.
    """
    try:
        profile = from_dict(Profile, json.loads(path.read_text(encoding="utf-8")))
        for values in profile.points:
            point_from(values)
        _ = profile.fitted_keys
        if profile.sizes.fragment_steps <= 0 or profile.costs.actor_fixed_s + profile.costs.actor_per_env_s <= 0:
            raise ValueError("fragments without steps, or actors without costs")
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror}; name a profile.json that scale wrote") from error
    except (ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
        raise RunFolderError(f"{path} is no profile of this version: {error}") from error
    return profile


def _burst(config: TrainConfig, fragment_steps: float, envs_per_actor: int) -> tuple[float, float]:
    steps = max(float(config.push_period), fragment_steps / envs_per_actor)
    return steps, envs_per_actor * steps / fragment_steps


def _other_cores(point: Point, price: ShardPrice, fragments_per_push: float) -> float:
    """Cores in use by what the profile has no price for."""
    done, cores = point.per_s, point.cores
    shard = done["push"] * (price.push_s + price.push_call_s / fragments_per_push)
    shard += done["sample"] * price.sample_s + done["priorities"] * price.priorities_s
    idle = 0.0 if point.learner else cores["learner"] + cores["loaders"]
    return cores["ray"] + max(0.0, cores["replay"] - shard) + idle


def _runnable(point: Point, loaders: int) -> float:
    """Processes that did not wait for another one, on average."""
    trains = (1 - point.learner_time["wait"]) + loaders * point.loader_time["decode"] if point.learner else 0.0
    return point.actors * (1 - point.actor_time["push"]) + trains


def _dearer(point: Point, costs: Costs, slow: float) -> float:
    """How much more CPU time the roles took than by their prices on crowded cores, 0.1 = 10 %."""
    batched_steps = point.agent_steps_per_s / point.envs_per_actor
    due = batched_steps * (costs.actor_fixed_s + point.envs_per_actor * costs.actor_per_env_s)
    spent = point.cores["actors"]
    if point.learner:
        due += point.updates_per_s * costs.learner_s + point.per_s["batches"] * costs.loader_s
        spent += point.cores["learner"] + point.cores["loaders"]
    return spent / (due * slow) - 1


def _steps_s(point: Point) -> float:
    """Actor seconds per batched step, were the actors' CPU use 1."""
    return point.envs_per_actor / point.agent_steps_per_s if point.agent_steps_per_s else 0.0


def _affine(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Fixed part and part per environment, both ≥ 0, through the medians of the one or two sizes; all per environment
    where only one was measured."""
    middle = {size: _middle([s for n, s in zip(sizes, seconds, strict=True) if n == size]) for size in set(sizes)}
    if len(middle) == 1:
        return 0.0, middle[sizes[0]] / sizes[0]
    x, y = np.array(list(middle), np.float64), np.array(list(middle.values()))
    (fixed, per_env), _ = optimize.nnls(np.stack([1 / y, x / y], axis=1), np.ones_like(y))
    return float(fixed), float(per_env)


def _idle(points: Sequence[Point], cores: int) -> float:
    """Wall-clock seconds of a batched step that are neither work nor waiting for the replay; 0 where no point had cores
    to spare, because waiting for a core would count too."""
    found = []
    for point in points:
        if point.cores["machine"] < cores - SPARE_CORES:
            idle = point.actors * (1 - point.actor_time["push"]) - point.cores["actors"]
            found.append(max(0.0, idle) * _steps_s(point))
    return _middle(found)


def _per(points: Sequence[Point], link: str, operation: str) -> float:
    return _middle([p.bytes_per_s[link] / p.per_s[operation] for p in points if p.per_s[operation]])


def _middle(values: Sequence[float]) -> float:
    """The median: a machine whose speed jumps for a while would draw a mean along."""
    return float(statistics.median(values)) if values else 0.0
