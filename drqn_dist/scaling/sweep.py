"""The `scale` command: a sweep of measurements that can be interrupted, or a simulation."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drqn_dist.config import TrainConfig, to_dict
from drqn_dist.errors import ConfigError, RunFolderError
from drqn_dist.scaling.points import Key, Point, PointsFile, differing, measured_config, read_points
from drqn_dist.scaling.profile import make_profile, read_profile, write_profile
from drqn_dist.scaling.report import doubts
from drqn_dist.scaling.settings import ScaleArgs, base_config, counts, point_config


def run_scale(args: ScaleArgs) -> dict[str, Any]:
    """Does what the command asks for, and writes its files.

    Returns:
        What is printed: `report.summary` of a measurement; of a simulation `forecast.predict` and, under validation
        and verdict, `forecast.validate`.

    Raises:
        ConfigError, RunFolderError, RoleFailedError
    """
    return _simulate(args) if args.simulates else _measure(args)


def order(grid: Sequence[Key], repeats: int, done: Sequence[Point]) -> Iterator[tuple[Key, int]]:
    """The points of the grid and the repeats that are still to be measured.

    All points once, in a random order, then all of them again in another one: a machine that is slower for a while
    favours none. The order is always the same, so that an interrupted sweep goes on where it stopped.
    """
    known = {(point.key, point.repeat) for point in done}
    for repeat in range(repeats):
        shuffled = list(grid)
        random.Random(repeat).shuffle(shuffled)
        yield from ((key, repeat) for key in shuffled if (key, repeat) not in known)


def _measure(args: ScaleArgs) -> dict[str, Any]:
    config = base_config(args)
    actors = counts("--actors", args.actors)
    envs = counts("--envs-per-actor", args.envs_per_actor or str(config.actor.envs_per_actor))
    nodes = counts("--nodes", args.nodes)
    from drqn_dist.experiments.run_folder import machine_description
    from drqn_dist.scaling.measure import check_point, measure
    from drqn_dist.scaling.nodes import check_nodes

    grid = [(n, e, k, args.learner) for n, e, k in itertools.product(actors, envs, nodes)]
    for n, e, k, learner in grid:  # what cannot be measured is refused before anything is
        check_nodes(k, n)
        check_point(point_config(config, n, e, learner), learner)
    assert args.out is not None
    machine = machine_description()
    settings = {
        "config": to_dict(config),
        "seconds": args.seconds,
        "warmup_s": args.warmup_s,
        "learner": args.learner,
        "machine": {name: machine[name] for name in ("cpu", "usable_cores")},
    }
    file = PointsFile(args.out, settings)
    left = list(order(grid, args.repeats, file.points))
    try:
        for done, (key, repeat) in enumerate(left, start=1):
            point = measure(config, *key, args.warmup_s, args.seconds, repeat)
            file.add(point)
            print(f"{done}/{len(left)}  {_line(point, config.replay.samples_per_insert)}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        kept = f"{len(file.points)} measurements are kept in {args.out}"
        print(f"interrupted; {kept}, and the same command goes on from there", file=sys.stderr, flush=True)
        raise
    return _write(config, file.points, args.out, machine)


def _write(config: TrainConfig, points: Sequence[Point], out: Path, machine: dict[str, Any]) -> dict[str, Any]:
    from drqn_dist.bench.play import fresh_weights
    from drqn_dist.envs.make import env_spec
    from drqn_dist.scaling.crowding import measure_crowding
    from drqn_dist.scaling.forecast import caution, saturation, shard_sentence
    from drqn_dist.scaling.picture import draw
    from drqn_dist.scaling.report import summary, write_json, write_table
    from drqn_dist.scaling.shard import measure_shard
    from drqn_dist.scaling.simulate import one_machine
    from drqn_dist.training.memory import batches_per_call
    from learner.learner import resolve_device

    result = summary(points, machine, config.replay.shards, config.replay.samples_per_insert)
    write_table(points, out / "scale.csv")
    write_json(result, out / "scale.json")
    draw(points, out / "scale.png")
    spec = env_spec(config.env)
    cores = int(machine["usable_cores"])
    try:  # measured once for a sweep: they take a while, and belong to its machine
        known = read_profile(out / "profile.json")
        neighbours, shard = known.crowding.neighbours, known.shard
    except RunFolderError:
        print(
            "measuring how busy neighbours slow a core, and what a replay shard costs: two minutes",
            file=sys.stderr,
            flush=True,
        )
        # Where a GPU trains, the cores act.
        on_cores = any(point.learner for point in points) and resolve_device(config.learner.device).type == "cpu"
        neighbours = measure_crowding(config, cores, on_cores)
        shard = measure_shard(config, spec, cores, neighbours)
    weight_bytes = fresh_weights(config, spec).vector.nbytes
    profile = make_profile(
        config, points, cores, neighbours, shard, batches_per_call(config, spec), weight_bytes, machine
    )
    write_profile(profile, out / "profile.json")
    most = max(point.envs_per_actor for point in points)
    limit = saturation(profile, most, one_machine(profile), profile.trains)
    result |= {"saturation": asdict(limit), "shard": shard_sentence(profile, limit, most)}
    if said := caution(profile):
        result["caution"] = said
    write_json(result, out / "scale.json")
    return result


def _simulate(args: ScaleArgs) -> dict[str, Any]:
    from drqn_dist.scaling.forecast import caution, extrapolation, predict, validate, verdict
    from drqn_dist.scaling.report import write_json

    assert args.profile is not None
    actors = counts("--simulate", args.simulate) if args.simulate is not None else ()
    profile = read_profile(args.profile)
    points = read_points(args.validate) if args.validate is not None else []
    result: dict[str, Any] = {}
    cautions = [caution(profile)]
    if actors:
        envs = counts("--envs-per-actor", args.envs_per_actor or str(profile.config.actor.envs_per_actor))
        if len(envs) > 1:
            raise ConfigError(f"--simulate takes one number of environments, but --envs-per-actor is {envs}")
        cautions.append(extrapolation(profile, envs[0]))
        result |= predict(profile, actors, envs[0], args.cluster, args.learner)
    if args.validate is not None:
        comparisons = validate(profile, points)
        result |= {
            "validation": [asdict(c) for c in comparisons],
            "verdict": verdict(comparisons, len(points)),
            "other_settings": differing(measured_config(args.validate.parent), to_dict(profile.config)),
        }
    if any(cautions):
        result["caution"] = " ".join(filter(None, cautions))
    if args.out is not None:
        try:
            args.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"cannot use {args.out}: {error.strerror}; choose another --out") from error
        write_json(result, args.out / "simulation.json")
    return result


def _line(point: Point, samples_per_insert: float) -> str:
    figures = (
        f"{point.actors} actors x {point.envs_per_actor} environments, repeat {point.repeat}: "
        f"{point.agent_steps_per_s:,.0f} steps/s, {point.updates_per_s:.1f} updates/s, "
        f"{point.cores['machine']:.2f} cores busy"
    )
    return ". ".join([figures, *doubts(point.flat(), samples_per_insert)])
