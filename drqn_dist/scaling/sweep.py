"""The `scale` command: a sweep of measurements that can be interrupted, or a simulation."""

import itertools
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from drqn_dist.errors import ConfigError
from drqn_dist.scaling.points import Key, Point, PointsFile, read_sweep
from drqn_dist.scaling.settings import ScaleArgs, base_config, counts, point_config


def run_scale(args: ScaleArgs) -> tuple[dict[str, Any], str]:
    """Does what the command asks for and writes its files.

    Returns:
        `report.summary` of a measurement or `predict.simulate` of a simulation, and the same as text.

    Raises:
        ConfigError, RunFolderError, RoleFailedError
    """
    return _measure(args) if args.simulate is None else _simulate(args, args.simulate)


def order(grid: Sequence[Key], repeats: int, done: Sequence[Point]) -> Iterator[tuple[Key, int]]:
    """The points of the grid and the repeats that are still to be measured.

    Each repeat takes all points in another random order, so that a machine that is slower for a while favours none.
    The orders are always the same, so that an interrupted sweep goes on where it stopped.
    """
    known = {(point.key, point.repeat) for point in done}
    for repeat in range(repeats):
        shuffled = list(grid)
        random.Random(repeat).shuffle(shuffled)
        yield from ((key, repeat) for key in shuffled if (key, repeat) not in known)


def _measure(args: ScaleArgs) -> tuple[dict[str, Any], str]:
    config = base_config(args)
    actors = counts("--actors", args.actors)
    envs = counts("--envs-per-actor", args.envs_per_actor or str(config.actor.envs_per_actor))
    from drqn_dist.experiments.run_folder import machine_description
    from drqn_dist.scaling import picture, report
    from drqn_dist.scaling.measure import check_point, measure

    grid = list(itertools.product(actors, envs))
    for n, e in grid:  # what cannot be measured is refused before anything is
        check_point(point_config(config, n, e, args.learner), args.learner)
    assert args.out is not None
    machine, ratio = machine_description(), config.replay.samples_per_insert
    settings = {
        "config": asdict(config),
        "seconds": args.seconds,
        "warmup_s": args.warmup_s,
        "learner": args.learner,
        "machine": {name: machine[name] for name in ("cpu", "usable_cores")},
    }
    file = PointsFile(args.out, settings)
    left = list(order(grid, args.repeats, file.points))
    try:
        for done, ((n, e), repeat) in enumerate(left, start=1):
            point = measure(config, n, e, args.learner, args.warmup_s, args.seconds, repeat)
            file.add(point)
            speed = f"{point.agent_steps_per_s:,.0f} steps/s, {point.updates_per_s:.1f} updates/s"
            said = f"{done}/{len(left)}  {n} actors x {e} environments, repeat {repeat}: {speed}"
            print(". ".join([said, *report.doubts(point.flat(), ratio)]), file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        kept = f"{len(file.points)} measurements are kept in {args.out}"
        print(f"interrupted; {kept}, and the same command goes on from there", file=sys.stderr, flush=True)
        raise
    result = report.summary(file.points, machine, config.replay.shards, ratio)
    report.write_table(file.points, args.out / "scale.csv")
    report.write_json(result, args.out / "scale.json")
    picture.draw(file.points, args.out / "scale.png")
    return result, report.measured_text(result)


def _simulate(args: ScaleArgs, simulated: str) -> tuple[dict[str, Any], str]:
    actors = counts("--simulate", simulated)
    from drqn_dist.scaling.predict import simulate, simulated_text
    from drqn_dist.scaling.report import write_json

    assert args.out is not None
    settings, points = read_sweep(args.out)
    envs = counts("--envs-per-actor", args.envs_per_actor or str(settings["config"]["actor"]["envs_per_actor"]))
    if len(envs) > 1:
        raise ConfigError(f"--envs-per-actor is {args.envs_per_actor}, but --simulate takes one number of environments")
    result = simulate(settings, points, actors, envs[0], args.cluster)
    write_json(result, args.out / "simulation.json")
    return result, simulated_text(result)
