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
from drqn_dist.scaling.points import Key, Point, PointsFile
from drqn_dist.scaling.settings import ScaleArgs, base_config, counts, point_config


def run_scale(args: ScaleArgs) -> dict[str, Any]:
    """Does what the command asks for, writes its files, and answers what is printed: `report.summary` of a measurement,
    `predict.simulate` of a simulation.

    Raises:
        ConfigError, RunFolderError, RoleFailedError
    """
    return _measure(args) if args.simulate is None else _simulate(args)


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


def _measure(args: ScaleArgs) -> dict[str, Any]:
    config = base_config(args)
    actors = counts("--actors", args.actors)
    envs = counts("--envs-per-actor", args.envs_per_actor or str(config.actor.envs_per_actor))
    from drqn_dist.experiments.run_folder import machine_description
    from drqn_dist.scaling.measure import check_point, measure
    from drqn_dist.scaling.report import doubts

    grid = list(itertools.product(actors, envs))
    for n, e in grid:  # what cannot be measured is refused before anything is
        check_point(point_config(config, n, e, args.learner), args.learner)
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
        for done, ((n, e), repeat) in enumerate(left, start=1):
            point = measure(config, n, e, args.learner, args.warmup_s, args.seconds, repeat)
            file.add(point)
            speed = f"{point.agent_steps_per_s:,.0f} steps/s, {point.updates_per_s:.1f} updates/s"
            said = f"{done}/{len(left)}  {n} actors x {e} environments, repeat {repeat}: {speed}"
            said = ". ".join([said, *doubts(point.flat(), config.replay.samples_per_insert)])
            print(said, file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        kept = f"{len(file.points)} measurements are kept in {args.out}"
        print(f"interrupted; {kept}, and the same command goes on from there", file=sys.stderr, flush=True)
        raise
    return _write(config, file.points, args.out, machine)


def _write(config: TrainConfig, points: Sequence[Point], out: Path, machine: dict[str, Any]) -> dict[str, Any]:
    from drqn_dist.envs.make import env_spec
    from drqn_dist.scaling.picture import draw
    from drqn_dist.scaling.profile import Profile, read_profile
    from drqn_dist.scaling.report import summary, write_json, write_table
    from drqn_dist.scaling.shard import measure_shard

    result = summary(points, machine, config.replay.shards, config.replay.samples_per_insert)
    write_table(points, out / "scale.csv")
    write_json(result, out / "scale.json")
    draw(points, out / "scale.png")
    path = out / "profile.json"
    try:  # once for a sweep
        replay = read_profile(path).replay
    except RunFolderError:
        print("measuring what calls to the replay cost: a minute", file=sys.stderr, flush=True)
        replay = measure_shard(config, env_spec(config.env))
    write_json(asdict(Profile.of(config, points, replay, machine)), path)
    return result


def _simulate(args: ScaleArgs) -> dict[str, Any]:
    actors = counts("--simulate", args.simulate or "")
    from drqn_dist.scaling.predict import simulate
    from drqn_dist.scaling.profile import read_profile
    from drqn_dist.scaling.report import write_json

    assert args.profile is not None
    profile = read_profile(args.profile)
    envs = counts("--envs-per-actor", args.envs_per_actor or str(profile.envs_per_actor))
    if len(envs) > 1:
        raise ConfigError(f"--envs-per-actor is {args.envs_per_actor}, but --simulate takes one number of environments")
    result = simulate(profile, actors, envs[0], args.cluster)
    if args.out is not None:
        write_json(result, args.out / "simulation.json")
    return result
