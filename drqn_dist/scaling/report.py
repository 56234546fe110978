"""What a sweep comes to: a table, a summary with its fits, and the bottleneck in one sentence."""

import csv
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drqn_dist.errors import ConfigError, RunFolderError
from drqn_dist.scaling.fit import Fit, fit
from drqn_dist.scaling.points import Key, Point

BUSY = 0.9
"""A machine with more than this share of its cores at work has none to spare."""
FULL = 0.8
"""A replay shard that uses more than this share of a core has none to spare."""
WAITS = 0.15
"""A role that waits for more than this share of its time is limited by another one."""
OTHERS = 0.1
"""Cores that other programs may use unmentioned."""
UNSETTLED = 0.05
"""A run whose samples per insert are off the replay ratio by more than this share is in no steady state."""
ROLES = ("actors", "learner", "replay", "ray")


def by_key(points: Sequence[Point]) -> dict[Key, list[Point]]:
    """The repeats of each point, in order of environments and actors."""
    groups: dict[Key, list[Point]] = {}
    for point in sorted(points, key=lambda p: (p.envs_per_actor, p.actors, p.repeat)):
        groups.setdefault(point.key, []).append(point)
    return groups


def curves(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points over the number of actors, one curve for each number of environments per actor."""
    found: dict[str, list[Point]] = {}
    for group in by_key(points).values():
        found.setdefault(f"{group[0].envs_per_actor} environments per actor", []).extend(group)
    return found


def median(points: Sequence[Point]) -> dict[str, Any]:
    """The medians of all figures of a point's repeats, flat; what they have in common stays."""
    flat = [point.flat() for point in points]
    merged: dict[str, Any] = {}
    for name, first in flat[0].items():
        values = [row[name] for row in flat if row[name] is not None]
        merged[name] = first if isinstance(first, int) or not values else statistics.median(values)
    del merged["repeat"]
    return merged


def fit_curve(curve: Sequence[Point]) -> Fit | str:
    """The law of a curve, or the reason why there is none."""
    try:
        return fit([point.actors for point in curve], [point.agent_steps_per_s for point in curve])
    except ConfigError as error:
        return str(error)


def rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The medians of each point with repeats, spread, and efficiency: throughput per actor over that of the fewest."""
    found = []
    for curve in curves(points).values():
        base = 0.0
        for group in by_key(curve).values():
            row, speeds = median(group), [point.agent_steps_per_s for point in group]
            each = row["agent_steps_per_s"] / row["actors"]
            base = base or each
            row |= {"repeats": len(group), "spread": [min(speeds), max(speeds)]}
            found.append(row | {"efficiency": each / base if base else 0.0})
    return found


def summary(points: Sequence[Point], machine: dict[str, Any], shards: int, samples_per_insert: float) -> dict[str, Any]:
    """All of it, JSON-able."""
    laws = {name: fit_curve(curve) for name, curve in curves(points).items()}
    return {
        "bottleneck": bottleneck(points, int(machine["usable_cores"]), shards, samples_per_insert),
        "points": rows(points),
        "fits": {name: asdict(law) if isinstance(law, Fit) else law for name, law in laws.items()},
        "machine": machine,
    }


def bottleneck(points: Sequence[Point], cores: int, shards: int, samples_per_insert: float) -> str:
    """What limits the largest measured point, with the figures that show it, and what speaks against them; `cores` are
    the machine's, `shards` the replay's, `samples_per_insert` is the replay ratio that was asked for."""
    row = median(max(by_key(points).values(), key=lambda group: group[0].actors * group[0].envs_per_actor))
    replay = row["cores.replay"] / shards
    blocked, full = row["actor_time.push"] > WAITS, row["cores.machine"] > BUSY * cores
    if row["learner"] and blocked and row["learner_time.wait"] <= WAITS:
        part = "the learner" + (", which gets less than a core" if full and row["cores.learner"] < BUSY else "")
    elif blocked and replay > FULL:
        part = f"the replay, which uses {replay:.2f} of a core{' for each shard' if shards > 1 else ''}"
    elif full:
        part = "the cores"
    elif blocked:
        part = "the calls between processes"
    else:
        part = "the actors themselves"
    shares = {name.partition(".")[2]: share for name, share in row.items() if name.startswith("actor_time.")}
    first, second = sorted(shares, key=lambda name: -shares[name])[:2]
    spent = f"the actors spend {shares[first]:.0%} of their time on {first} and {shares[second]:.0%} on {second}"
    if row["learner"]:
        spent += f", the learner trains {row['learner_time.train']:.0%} and waits {row['learner_time.wait']:.0%}"
    split = ", ".join(f"{role} {row[f'cores.{role}']:.2f}" for role in ROLES)
    where = f"At {row['actors']} actors x {row['envs_per_actor']} environments"
    said = f"{where} the bottleneck is {part}: {spent}; {row['cores.machine']:.2f} of {cores} cores are busy ({split})."
    return " ".join([said, *doubts(row, samples_per_insert)])


def doubts(row: dict[str, Any], samples_per_insert: float) -> list[str]:
    """What speaks against a measurement (`Point.flat`), or against the medians of several; in sentences."""
    found = []
    others = row["cores.machine"] - sum(row[f"cores.{role}"] for role in ROLES)
    if others > OTHERS:
        found.append(f"Other programs used {others:.2f} cores: measure on a quiet machine.")
    reached = row["samples_per_insert"]
    if reached is not None and abs(reached / samples_per_insert - 1) > UNSETTLED:
        found.append(
            f"It had not settled: {reached:.2f} samples per insert instead of {samples_per_insert:g}; measure longer "
            "(--warmup-s, --seconds)."
        )
    return found


def measured_text(result: dict[str, Any]) -> str:
    """A `summary` for a person: the points, the fits, and the bottleneck."""
    lines = ["actors  envs   steps/s            efficiency  updates/s  policy lag  samples/insert  cores busy"]
    for row in result["points"]:
        low, high = row["spread"]
        lag, ratio = ("-" if row[name] is None else f"{row[name]:.2f}" for name in ("policy_lag", "samples_per_insert"))
        lines.append(
            f"{row['actors']:>6} {row['envs_per_actor']:>5} {row['agent_steps_per_s']:>9,.0f}"
            f" {f'({low:,.0f}-{high:,.0f})':<14}{row['efficiency']:>7.2f}{row['updates_per_s']:>11.1f}"
            f"{lag:>12}{ratio:>16}{row['cores.machine']:>12.2f}"
        )
    for name, law in result["fits"].items():
        lines.append(f"Universal Scalability Law, {name}: {law if isinstance(law, str) else _law_text(law)}")
    return "\n".join([*lines, result["bottleneck"]])


def _law_text(law: dict[str, Any]) -> str:
    shown = []
    for name, value in law["parameters"].items():
        low, high = law["intervals"][name] if law["intervals"] else (None, None)
        interval = "no interval" if low is None else f"{low:,.4g} to {high:,.4g}"
        shown.append(f"{name} {value:,.4g} ({interval})")
    return ", ".join(shown)


def write_table(points: Sequence[Point], path: Path) -> None:
    """Writes every measurement as a row of a CSV file. Raises RunFolderError where it cannot."""
    table = [point.flat() for group in by_key(points).values() for point in group]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    _write(text.getvalue(), path)


def write_json(values: Any, path: Path) -> None:
    """Writes a JSON file. Raises RunFolderError where it cannot."""
    _write(json.dumps(values, indent=2) + "\n", path)


def _write(text: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror}; choose another --out") from error
