"""Measured points, and the folder that keeps them."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from drqn_dist.config import from_dict
from drqn_dist.errors import ConfigError, RunFolderError
from drqn_dist.reading import parse_json, read_json

Key = tuple[int, int]
"""Actors, environments per actor."""


@dataclass(frozen=True)
class Point:
    """One measurement of a steady state. Shares are of all processes of a role together and add up to 1."""

    actors: int
    envs_per_actor: int
    learner: bool
    repeat: int
    seconds: float
    agent_steps_per_s: float
    fragments_per_s: float
    updates_per_s: float
    samples_per_insert: float | None
    """Steps sampled per step inserted; None without a learner."""
    policy_lag: float | None
    """Updates between the acting policy and the learner; None without a learner."""
    cores: dict[str, float]
    """CPU seconds per second: actors, replay, learner, ray (its own processes and the driver), machine (everything that
    ran)."""
    actor_time: dict[str, float]
    """Shares: env, policy (the network), build, encode, push (its wait included), weights, other."""
    learner_time: dict[str, float]
    """Shares: wait (for a batch), train, other."""

    @property
    def key(self) -> Key:
        return self.actors, self.envs_per_actor

    def flat(self) -> dict[str, Any]:
        """One row of a table: nested figures as `table.name`."""
        return dict(_flatten(asdict(self)))


class PointsFile:
    """`points.jsonl` of a sweep, one measurement a line, beside `sweep.json` with the settings."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Opens the folder, or makes it.

        Args:
            settings: under which the points are measured, JSON-able.

        Raises:
            ConfigError: the folder's points were measured under other settings; the message names them.
            RunFolderError: it cannot be read or written.
        """
        self._path, sweep = folder / "points.jsonl", folder / "sweep.json"
        self.points: list[Point] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if sweep.exists():
                saved, self.points = read_sweep(folder)
                _require_same(folder, saved, json.loads(json.dumps(settings)))
            else:
                sweep.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise RunFolderError(f"cannot use {folder}: {error.strerror or error}; choose another --out") from error

    def add(self, point: Point) -> None:
        """Appends a point, on disk when this returns."""
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(point)) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunFolderError(f"cannot write {self._path}: {error.strerror or error}") from error
        self.points.append(point)


def read_sweep(folder: Path) -> tuple[dict[str, Any], list[Point]]:
    """The settings and the points of a sweep so far; cuts off a last line that a kill left unfinished.

    Raises:
        RunFolderError: there is no sweep, or it is damaged.
    """
    path = folder / "points.jsonl"
    try:
        settings = read_json(folder / "sweep.json")
        whole, _, torn = (path.read_bytes() if path.exists() else b"").rpartition(b"\n")
        if torn:
            os.truncate(path, len(whole) + bool(whole))
        return dict(settings), [from_dict(Point, parse_json(line.decode())) for line in whole.splitlines()]
    except OSError as error:
        raise RunFolderError(f"{folder} holds no measured points: {error.strerror}; measure some with --out") from error
    except (ValueError, TypeError, ConfigError) as error:
        raise RunFolderError(f"the points in {folder} are damaged: {error}; choose another --out") from error


def _require_same(folder: Path, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    before, now = dict(_flatten(saved)), dict(_flatten(asked))
    found = [
        f"{name} {before.get(name)!r} there, {now.get(name)!r} asked"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
    if found:
        shown = ", ".join([*found[:5], *(["…"] if len(found) > 5 else [])])
        raise ConfigError(f"{folder} holds points of another sweep: {shown}; use those settings or another --out")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
