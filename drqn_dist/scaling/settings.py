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

UNBOUNDED_STEPS = 10**10
"""More steps than any measurement inserts."""
LONGEST_S = 20_000.0
"""Simulated seconds after which a prediction is given all the same."""
ACTING_ONLY_BYTES = 512 * 1024**2
"""Room for fragments that nobody samples."""

_MEASURED_WITH = ("actors", "nodes", "seconds", "warmup_s", "repeats")
_MEASURED = ("preset", "env", "set")
_SIMULATED_WITH = ("cluster", "learner", "envs_per_actor")


@dataclass(frozen=True)
class ClusterShape:
    """The machines to simulate: one head with replay, loaders and learner, and nodes with actors."""

    head_cores: int = 0
    """Cores of the head; 0 = as many as the measured machine."""
    node_cores: int = 16
    """Cores of each actor node; 0 = there are none, and the actors share the head."""
    actors_per_node: int = 0
    """Actors on each node; 0 = one per core."""
    shards: int = 0
    """Replay processes on the head; 0 = as many as measured."""
    loaders: int = 0
    """Loader processes on the head; 0 = as many as measured."""
    learner_speedup: float = 1.0
    """How many times faster than the measured one an update is, for example on a GPU."""
    link_gbit_per_s: float = 10.0
    """Bandwidth of each node's network link, each way."""
    latency_ms: float = 0.2
    """Time that a message takes between two nodes, besides its bytes."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("head_cores", 0, 100_000),
            ("node_cores", 0, 100_000),
            ("actors_per_node", 0, 100_000),
            ("shards", 0, 10_000),
            ("loaders", 0, 10_000),
            ("learner_speedup", 1e-6, 1e6),
            ("link_gbit_per_s", 1e-6, 1e6),
            ("latency_ms", 0, 1e6),
        ):
            _require_range(f"cluster.{name}", getattr(self, name), low, high)


@dataclass(frozen=True)
class ScaleArgs:
    """Measures how a run scales with its actors; with --simulate, predicts how it would on other machines."""

    out: Path | None = None
    """Folder for points.jsonl, scale.csv, scale.json, scale.png and profile.json; a sweep that was interrupted goes on
    there. The simulation writes simulation.json."""
    actors: str = "1,2"
    """Numbers of actors, for example 1,2,4."""
    envs_per_actor: str = ""
    """Numbers of environments per actor, for example 8,16; default: the preset's."""
    nodes: str = "1"
    """Numbers of Ray nodes on this machine: 1, or one head and the others for the actors."""
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
    """Other settings of the configuration, for example learner.loaders=2 replay.min_steps=1000."""
    learner: bool = True
    """Train beside acting; --no-learner measures acting alone: the replay holds nobody up and nobody samples."""
    simulate: str | None = None
    """Numbers of actors to simulate, for example 16,64,256,1024; needs --profile."""
    profile: Path | None = None
    """A profile.json that a measurement wrote."""
    validate: Path | None = None
    """A points.jsonl to compare the simulation with, on the machine that the profile was measured on."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object on stdout instead of text."""
    cluster: Annotated[ClusterShape, tyro.conf.arg(name="cluster")] = field(default_factory=ClusterShape)

    def __post_init__(self) -> None:
        _require_range("seconds", self.seconds, 0.1, 86_400)
        _require_range("warmup_s", self.warmup_s, 0, 86_400)
        _require_range("repeats", self.repeats, 1, 1_000)
        if self.simulates and self.profile is None:
            raise ConfigError("--simulate and --validate need --profile FILE: a profile.json that a measurement wrote")
        if self.simulates:
            self._refuse(_MEASURED_WITH, "is for a measurement")
            self._refuse(_MEASURED, "is for a measurement; a simulation takes it from --profile")
        else:
            self._refuse(("cluster",), "is for --simulate")
        if self.simulate is None and self.validate is not None:
            self._refuse(_SIMULATED_WITH, "is for --simulate; --validate takes it from the points")
        if not self.simulates and self.profile is not None:
            raise ConfigError("--profile is for --simulate or --validate; a measurement writes its own into --out")
        if not self.simulates and self.out is None:
            raise ConfigError("say where to keep the measurements: --out DIR")

    def _refuse(self, names: Sequence[str], why: str) -> None:
        defaults = {f.name: f.default for f in fields(self)} | {"cluster": ClusterShape()}
        for name in names:
            if getattr(self, name) != defaults[name]:
                raise ConfigError(f"--{name.replace('_', '-')} {why}")

    @property
    def simulates(self) -> bool:
        return self.simulate is not None or self.validate is not None


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
    """The configuration that is measured, but for actors and environments: no evaluations, no end.

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
        config, total_steps=10**15, stop_at_return=None, minutes=None, eval=replace(config.eval, period_updates=None)
    )


def point_config(config: TrainConfig, actors: int, envs_per_actor: int, learner: bool) -> TrainConfig:
    """The configuration of one point.

    Without the learner nothing is ever drawn, and pushes never wait, because the replay is never filled to `min_steps`;
    its bytes stay bounded.

    Raises:
        ConfigError: so many environments do not fit the replay.
    """
    if not learner:
        replay = replace(
            config.replay,
            min_steps=UNBOUNDED_STEPS,
            capacity_steps=UNBOUNDED_STEPS,
            capacity_bytes=min(config.replay.capacity_bytes, ACTING_ONLY_BYTES),
        )
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
