"""What `drqn-dist scale` is asked for. Light to import."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from drqn_dist.config import TrainConfig, from_dict, to_dict
from drqn_dist.errors import ConfigError
from drqn_dist.presets import preset

FAR_STEPS = 10**10
"""More than any measurement inserts."""
_MEASURED = ("actors", "seconds", "warmup_s", "repeats", "preset", "env", "set", "learner")


@dataclass(frozen=True)
class ClusterShape:
    """The machines to predict: a head with replay and learner, and cores for the actors."""

    head_cores: int = 0
    """Cores of the head; 0 = as many as the measured machine."""
    actor_cores: float = 1.0
    """Cores for each actor, on machines of their own; 0 = the actors share the head's cores."""
    shards: int = 0
    """Replay processes on the head; 0 = as many as measured."""
    learner_speedup: float = 1.0
    """How many times faster than the measured one an update is, for example on a GPU."""

    def __post_init__(self) -> None:
        for name, low in (("head_cores", 0), ("actor_cores", 0), ("shards", 0), ("learner_speedup", 1e-6)):
            _require_range(f"cluster.{name}", getattr(self, name), low, 1e6)


@dataclass(frozen=True)
class ScaleArgs:
    """Measures how a run scales with its actors; with --simulate, predicts how it would on other machines."""

    out: Path | None = None
    """Folder for points.jsonl, scale.csv, scale.json, scale.png and profile.json; an interrupted sweep goes on there.
    A simulation writes simulation.json."""
    actors: str = "1,2"
    """Numbers of actors, for example 1,2,4."""
    envs_per_actor: str = ""
    """Numbers of environments per actor, for example 8,16; default: the preset's. A simulation takes one."""
    seconds: float = 20.0
    """Seconds of steady state of each measurement."""
    warmup_s: float = 5.0
    """Seconds before them, from when every role works."""
    repeats: int = 3
    """Measurements of each point."""
    preset: str = "pong-cpu"
    """The named configuration to measure."""
    env: str | None = None
    """Another environment than the preset's."""
    set: tuple[str, ...] = ()
    """Other settings of the configuration, for example replay.samples_per_insert=1 replay.min_steps=1000."""
    learner: bool = True
    """Train beside acting; --no-learner measures acting alone: pushes never wait and nobody samples."""
    simulate: str | None = None
    """Numbers of actors to predict, for example 16,64,256,1024; needs --profile."""
    profile: Path | None = None
    """A profile.json that a measurement wrote."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object on stdout instead of text."""
    cluster: Annotated[ClusterShape, tyro.conf.arg(name="cluster")] = field(default_factory=ClusterShape)

    def __post_init__(self) -> None:
        _require_range("seconds", self.seconds, 0.1, 86_400)
        _require_range("warmup_s", self.warmup_s, 0, 86_400)
        _require_range("repeats", self.repeats, 1, 1_000)
        if self.simulate is not None:
            if self.profile is None:
                raise ConfigError("--simulate needs --profile FILE: a profile.json that a measurement wrote")
            self._refuse(_MEASURED, "is for a measurement; a simulation takes it from --profile")
        else:
            self._refuse(("cluster", "profile"), "is for --simulate")
            if self.out is None:
                raise ConfigError("say where to keep the measurements: --out DIR")

    def _refuse(self, names: Sequence[str], why: str) -> None:
        defaults = {f.name: f.default for f in fields(self)} | {"cluster": ClusterShape()}
        for name in names:
            if getattr(self, name) != defaults[name]:
                raise ConfigError(f"--{name.replace('_', '-')} {why}")


def counts(flag: str, text: str) -> tuple[int, ...]:
    """`1,2,4` as different numbers in ascending order.

    Raises:
        ConfigError: one is no positive whole number.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(f"{flag} is {text!r}, but must be positive whole numbers between commas, such as 1,2,4")
    return tuple(sorted({int(word) for word in words}))


def base_config(args: ScaleArgs) -> TrainConfig:
    """The configuration to measure, without evaluations and without an end; actors and environments come later.

    Raises:
        ConfigError: the preset or a setting is unknown or cannot be used.
    """
    config = preset(args.preset)
    if args.env is not None:
        config = replace(config, env=replace(config.env, id=args.env))
    config = with_settings(config, args.set)
    if config.mode != "ray":
        raise ConfigError(f"mode is {config.mode}, but only Ray mode has processes to scale")
    return replace(
        config, total_steps=10**15, stop_at_return=None, minutes=0.0, eval=replace(config.eval, period_updates=0)
    )


def point_config(config: TrainConfig, actors: int, envs_per_actor: int, learner: bool) -> TrainConfig:
    """The configuration of one point. Without the learner the replay is never filled to `min_steps`, so nothing is
    drawn and pushes never wait; its bytes stay bounded.

    Raises:
        ConfigError: so many environments do not fit the replay.
    """
    if not learner:
        room = min(config.replay.capacity_bytes, 512 * 1024**2)
        replay = replace(config.replay, min_steps=FAR_STEPS, capacity_steps=FAR_STEPS, capacity_bytes=room)
        config = replace(config, replay=replay)
    return replace(config, actors=actors, actor=replace(config.actor, envs_per_actor=envs_per_actor))


def with_settings(config: TrainConfig, assignments: Sequence[str]) -> TrainConfig:
    """The configuration with some settings changed; each is `dotted.name=value`, the value as JSON or a plain word.

    Raises:
        ConfigError: a setting is unknown or its value cannot be used.
    """
    values = to_dict(config)
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        *path, last = name.split(".")
        table: Any = values
        for part in path:
            table = table.get(part) if isinstance(table, dict) else None
        if not separator or not isinstance(table, dict) or last not in table:
            raise ConfigError(f"--set {assignment}: not of the form name=value with a known setting's dotted name")
        try:
            table[last] = json.loads(text)
        except json.JSONDecodeError:
            table[last] = text
    return from_dict(TrainConfig, values)


def _require_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"--{name.replace('_', '-')} is {value}, but must lie in [{low:g}, {high:g}]")
