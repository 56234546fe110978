"""Measured points, and the folder that keeps them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from drqn_dist.errors import ConfigError, RunFolderError

POINTS_NAME = "points.jsonl"
SWEEP_NAME = "sweep.json"

Key = tuple[int, int, int, bool]
"""Actors, environments per actor, nodes, with a learner."""


@dataclass(frozen=True)
class Point:
    """One measurement of a steady state. Shares are of all processes of a role together and add up to 1."""

    actors: int
    envs_per_actor: int
    nodes: int
    """Ray nodes, of one machine unless a cluster was joined."""
    learner: bool
    repeat: int
    seconds: float
    agent_steps_per_s: float
    frames_per_s: float
    updates_per_s: float
    samples_per_insert: float | None
    """Steps sampled per step inserted, in these seconds."""
    sample_age: float | None
    """Updates between the policy that acted in a drawn window and the learner that trained it."""
    policy_lag: float | None
    """Updates between the acting policy and the learner."""
    cores: dict[str, float]
    """CPU seconds per second: actors, replay, loaders, learner, ray (its own processes and the driver), machine
    (everything that ran)."""
    bytes_per_s: dict[str, float]
    """pushes (actor → replay), samples (replay → loader), batches (loader → learner), weights (learner → actors; over
    Ray they lie in shared memory once for each node)."""
    actor_time: dict[str, float]
    """Shares: env, inference, build, encode, push (its wait included), weights, other."""
    loader_time: dict[str, float]
    """Shares: wait (for the replay's answer), decode, idle (the learner does not ask)."""
    learner_time: dict[str, float]
    """Shares: wait, train, publish, other. Transfer goes on beside them, see `transfer`."""
    transfer: float
    """Seconds per second that batches were being copied to the device."""
    per_s: dict[str, float]
    """Per second: fragments, batches; what the replay did: push (fragments), sample (batches), priorities (calls); and
    all calls to it."""
    replay_own_cpu_s: dict[str, float]
    """CPU seconds of our own code for each of push, sample, priorities; Ray's part is not in it."""
    cv: dict[str, float]
    """Standard deviation over mean of one batched actor step and of one update."""
    call_s: float
    """Seconds of a call to another process of this machine and back."""

    @property
    def key(self) -> Key:
        return self.actors, self.envs_per_actor, self.nodes, self.learner

    def flat(self) -> dict[str, Any]:
        """One row of a table: nested figures as `table.name`."""
        row: dict[str, Any] = {}
        for name, value in asdict(self).items():
            row |= {f"{name}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {name: value}
        return row


class PointsFile:
    """`points.jsonl` of a sweep: one measurement a line, written as soon as it is there."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Opens the folder, or makes it.

        Args:
            settings: under which the points are measured, JSON-able.

        Raises:
            ConfigError: the folder's points were measured under other settings; the message names them.
            RunFolderError: it cannot be read or written.
        """
        self._path = folder / POINTS_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sweep = folder / SWEEP_NAME
            if sweep.exists():
                _require_same(folder, json.loads(sweep.read_text(encoding="utf-8")), json.loads(json.dumps(settings)))
            else:
                sweep.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            self.points = read_points(self._path) if self._path.exists() else []
            whole = "".join(_line(point) for point in self.points)
            if self._path.exists() and not self._path.read_text(encoding="utf-8").endswith("\n"):
                # A line that a kill cut short must not be continued.
                beside = self._path.with_suffix(".new")
                beside.write_text(whole, encoding="utf-8")
                beside.replace(self._path)
        except OSError as error:
            raise RunFolderError(f"cannot use {folder}: {error.strerror or error}; choose another --out") from error
        except (ValueError, AttributeError) as error:  # no JSON, no text, or no table of settings
            raise RunFolderError(f"{folder / SWEEP_NAME} is damaged: {error}; choose another --out") from error

    def add(self, point: Point) -> None:
        """Appends a point, on disk when this returns."""
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(_line(point))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunFolderError(f"cannot write {self._path}: {error.strerror or error}") from error
        self.points.append(point)


def read_points(path: Path) -> list[Point]:
    """The points of a file; a last line cut short by a kill is skipped.

    Raises:
        RunFolderError: the file cannot be read or a line is no point.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror}; name a {POINTS_NAME} of a sweep") from error
    except UnicodeDecodeError as error:
        raise RunFolderError(f"{path} is no text: {error}; name a {POINTS_NAME} of a sweep") from error
    *lines, torn = text.split("\n")
    found = []
    for number, line in enumerate([*lines, torn] if torn else lines, start=1):
        try:
            found.append(point_from(json.loads(line)))
        except (json.JSONDecodeError, TypeError, AttributeError) as error:
            if number == len(lines) + 1:
                break
            raise RunFolderError(f"line {number} of {path} is no measured point: {error}") from error
    return found


def point_from(values: Mapping[str, Any]) -> Point:
    """The inverse of `asdict`.

    Raises:
        TypeError: a field is missing or unknown.
    """
    unknown = set(values) - {f.name for f in fields(Point)}
    if unknown:
        raise TypeError(f"unknown figure {sorted(unknown)[0]}")
    found = Point(**values)
    for f in fields(Point):
        if f.type in ("int", "float") and not isinstance(values[f.name], int | float):
            raise TypeError(f"{f.name} is {values[f.name]!r}")
    return found


def _line(point: Point) -> str:
    return json.dumps(asdict(point)) + "\n"


def measured_config(folder: Path) -> dict[str, Any]:
    """The configuration under which the points in a folder were measured; empty where it is not told.

    Raises:
        RunFolderError: the file that tells it is damaged.
    """
    path = folder / SWEEP_NAME
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["config"]) if path.exists() else {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunFolderError(f"{path} is damaged: {error}") from error


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Settings that both name with other values, or that only one names, with both values; none where one is empty."""
    if not there:
        return []
    before, now = dict(_flatten(there)), dict(_flatten(here))
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [f"{name} {before.get(name)!r} there, {now.get(name)!r}" for name in names]


def _require_same(folder: Path, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    found = [f"{difference} asked" for difference in differing(saved, asked)]
    if found:
        shown, more = ", ".join(found[:5]), f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise ConfigError(f"{folder} holds points of another sweep: {shown}{more}; use those settings or another --out")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
