"""What a sweep comes to: a table, a summary with fits, and the bottleneck in one sentence."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drqn_dist.errors import ConfigError, RunFolderError
from drqn_dist.scaling.fits import PARAMETERS, Fit, fit
from drqn_dist.scaling.points import Key, Point
from drqn_dist.scaling.profile import BUSY

WAITS = 0.15
"""A role that waits for more than this share of its time is held up by another one."""
OTHERS = 0.1
"""Cores that other programs may use unmentioned."""
UNSETTLED = 0.05
"""Samples per insert that are off the replay ratio by more than this share belong to no steady state."""
ROLES = ("actors", "learner", "loaders", "replay", "ray")


def by_key(points: Sequence[Point]) -> dict[Key, list[Point]]:
    """The repeats of each point, in order of environments and actors."""
    groups: dict[Key, list[Point]] = {}
    for point in sorted(points, key=lambda p: (p.learner, p.nodes, p.envs_per_actor, p.actors, p.repeat)):
        groups.setdefault(point.key, []).append(point)
    return groups


def series(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The curves over the number of actors, by what is alike in each: environments per actor, and nodes if several."""
    found: dict[str, list[Point]] = {}
    for group in by_key(points).values():
        nodes = f", {group[0].nodes} nodes" if group[0].nodes > 1 else ""
        found.setdefault(f"{group[0].envs_per_actor} environments per actor{nodes}", []).extend(group)
    return found


def median(points: Sequence[Point]) -> dict[str, Any]:
    """The medians of all figures of a point's repeats, flat; what they have in common stays."""
    rows = [point.flat() for point in points]
    merged: dict[str, Any] = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows if row[name] is not None]
        merged[name] = first if isinstance(first, int) or not values else statistics.median(values)
    return merged


def fits(points: Sequence[Point]) -> dict[str, dict[str, Fit | str]]:
    """Both laws for each curve, or the reason why one cannot be fitted."""
    found: dict[str, dict[str, Fit | str]] = {}
    for name, curve in series(points).items():
        found[name] = {}
        for law in PARAMETERS:
            try:
                found[name][law] = fit(law, [p.actors for p in curve], [p.agent_steps_per_s for p in curve])
            except ConfigError as error:
                found[name][law] = str(error)
    return found


def summary(
    points: Sequence[Point], machine: dict[str, Any], shards: int = 1, samples_per_insert: float = 0.0
) -> dict[str, Any]:
    """All of it, JSON-able; efficiency is throughput over that of the fewest actors, per actor."""
    rows = []
    for curve in series(points).values():
        groups = list(by_key(curve).values())
        base = median(groups[0])["agent_steps_per_s"] / groups[0][0].actors
        for group in groups:
            row = median(group)
            speeds = [point.agent_steps_per_s for point in group]
            del row["repeat"]
            row |= {"repeats": len(group), "spread": [min(speeds), max(speeds)]}
            row["efficiency"] = row["agent_steps_per_s"] / (base * row["actors"]) if base else 0.0
            rows.append(row)
    return {
        "bottleneck": bottleneck(points, int(machine["usable_cores"]), shards, samples_per_insert),
        "points": rows,
        "fits": {
            name: {law: asdict(found) if isinstance(found, Fit) else found for law, found in laws.items()}
            for name, laws in fits(points).items()
        },
        "machine": machine,
    }


def bottleneck(points: Sequence[Point], cores: int, shards: int = 1, samples_per_insert: float = 0.0) -> str:
    """What holds the largest measured point up, with the figures that show it, and what speaks against them.

    Args:
        cores: of the machine.
        shards: of the replay.
        samples_per_insert: asked for; 0: it does not matter.
    """
    largest = max(
        by_key(points).values(), key=lambda group: (group[0].actors * group[0].envs_per_actor, group[0].nodes)
    )
    row = median(largest)
    return " ".join([_bottleneck(row, cores, shards), *doubts(row, samples_per_insert)])


def doubts(row: dict[str, Any], samples_per_insert: float) -> list[str]:
    """What speaks against a measurement, or the medians of several; in sentences.

    Args:
        row: `Point.flat`.
        samples_per_insert: asked for; 0: it does not matter.
    """
    found = []
    others = row["cores.machine"] - sum(row[f"cores.{role}"] for role in ROLES)
    if others > OTHERS:
        found.append(f"Other programs used {others:.2f} cores meanwhile: measure on a quiet machine.")
    asked, reached = samples_per_insert, row["samples_per_insert"]
    if asked and reached is not None and abs(reached - asked) > UNSETTLED * asked:
        found.append(
            f"It had not settled: {reached:.2f} samples per insert of {asked:g}, so one side still lived "
            "on the rate limiter's slack; measure longer (--warmup-s, --seconds)."
        )
    return found


def _bottleneck(row: dict[str, Any], cores: int, shards: int) -> str:
    busy = min(1.0, row["cores.machine"] / cores)
    full = f"{row['cores.machine']:.2f} of {cores} cores are busy"
    split = ", ".join(f"{role} {row[f'cores.{role}']:.2f}" for role in ROLES)
    where = f"At {row['actors']} actors x {row['envs_per_actor']} environments"
    if row["nodes"] > 1:
        where += f" on {row['nodes']} nodes"
    replay, of_each = row["cores.replay"] / shards, " for each shard" if shards > 1 else ""
    if row["learner"] and row["actor_time.push"] > WAITS:
        evidence = f"the actors wait {row['actor_time.push']:.0%} of their time to push"
        if row["learner_time.wait"] <= WAITS:
            squeezed = f"; and {full} ({split}), so that it gets less than a core" if _squeezed(row, busy) else ""
            return (
                f"{where} the bottleneck is the learner: it trains {row['learner_time.train']:.0%} of its time and "
                f"waits {row['learner_time.wait']:.0%}, while {evidence}{squeezed}."
            )
        waits = f"the learner waits {row['learner_time.wait']:.0%} of its time for batches and {evidence}"
        if replay > BUSY - 0.1:
            return f"{where} the bottleneck is the replay: it uses {replay:.2f} of a core{of_each}, {waits}."
        if row["loader_time.decode"] > 0.5:
            return f"{where} the bottleneck is the loaders: they decode {row['loader_time.decode']:.0%} of it, {waits}."
        if busy >= BUSY:
            return f"{where} the bottleneck is the cores: {full} ({split}), {waits}."
        return f"{where} the bottleneck is the calls between processes: only {full}, yet {waits}."
    parts = ("env", "inference", "build", "encode", "push", "weights")
    shares = {part: row[f"actor_time.{part}"] for part in parts}
    first, second = sorted(shares, key=lambda part: -shares[part])[:2]
    spent = f"{first} {shares[first]:.0%} and {second} {shares[second]:.0%} of the actors' time"
    if busy >= BUSY:
        return f"{where} the bottleneck is the cores: {full} ({split}); {spent}."
    if shares["push"] > WAITS:
        return f"{where} the bottleneck is pushing to the replay, which uses {replay:.2f} of a core{of_each}: {spent}."
    learner = f", and the learner waits {row['learner_time.wait']:.0%} of its time" if row["learner"] else ""
    return f"{where} the bottleneck is the actors themselves: {spent}{learner}, while only {full}."


def write_table(points: Sequence[Point], path: Path) -> None:
    """Every measurement as a row of a CSV file.

    Raises:
        RunFolderError: it cannot be written.
    """
    rows = [point.flat() for group in by_key(points).values() for point in group]
    try:
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror}; choose another --out") from error


def write_json(values: Any, path: Path) -> None:
    """
    Raises:
        RunFolderError: it cannot be written.
    """
    try:
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror}; choose another --out") from error


def _squeezed(row: dict[str, Any], busy: float) -> bool:
    """The learner trains all the time without getting a core for it."""
    return bool(busy >= BUSY and row["cores.learner"] < BUSY)
