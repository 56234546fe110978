"""What `drqn-dist scale` is asked for. Light to import."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated

import tyro

from drqn_dist.arguments import parse_train
from drqn_dist.config import Bounded, TrainConfig, Within
from drqn_dist.errors import ConfigError, shown

FAR_STEPS = 10**10
"""More than any measurement inserts."""
_MEASURED = ("actors", "seconds", "warmup_s", "repeats", "preset", "set", "learner")


@dataclass(frozen=True)
class ClusterShape(Bounded):
    """The machines to predict: a head with replay and learner, and cores for the actors."""

    _path = "--cluster."

    head_cores: Annotated[int | None, Within(1, 1e6, "as measured")] = None
    """Cores of the head; None: as many as the measured machine."""
    actor_cores: Annotated[float | None, Within(1e-6, 1e6, "none of their own")] = 1.0
    """Cores for each actor, on machines of their own; None: the actors share the head's cores."""
    shards: Annotated[int | None, Within(1, 1e6, "as measured")] = None
    """Replay processes on the head; None: as many as measured."""
    learner_speedup: Annotated[float, Within(1e-6, 1e6)] = 1.0
    """How many times faster than the measured one an update is, for example on a GPU."""


@dataclass(frozen=True)
class ScaleArgs(Bounded):
    """Measures how a run scales with its actors; with --simulate, predicts how it would on other machines."""

    _path = "--"

    out: Path | None = None
    """Folder of the sweep: points.jsonl, scale.csv, scale.json and scale.png; an interrupted one goes on there. A
    simulation reads its points and writes simulation.json."""
    actors: str = "1,2,4"
    """Numbers of actors; a fit needs three."""
    envs_per_actor: str = ""
    """Numbers of environments per actor, for example 8,16; default: the preset's. A simulation takes one."""
    seconds: Annotated[float, Within(0.1, 86_400)] = 20.0
    """Seconds of steady state of each measurement."""
    warmup_s: Annotated[float, Within(0, 86_400)] = 5.0
    """Seconds before them, from when every role works."""
    repeats: Annotated[int, Within(1, 1_000)] = 3
    """Measurements of each point."""
    preset: str = "pong-cpu"
    """The named configuration to measure."""
    set: tuple[str, ...] = ()
    """Other settings, as flags of train without their dashes: env=ALE/Breakout-v5 replay.min-steps=1000."""
    learner: bool = True
    """Train beside acting; --no-learner measures acting alone: pushes never wait and nobody samples."""
    simulate: str | None = None
    """Numbers of actors to predict from the points in --out, for example 16,64,256,1024."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object on stdout instead of text."""
    cluster: Annotated[ClusterShape, tyro.conf.arg(name="cluster")] = field(default_factory=ClusterShape)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is None:
            raise ConfigError("say where the measurements are kept: --out DIR")
        if self.simulate is None:
            self._refuse(("cluster",), "is for --simulate")
        else:
            self._refuse(_MEASURED, "is for a measurement; a simulation takes it from --out")

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
    if not all(word.isdecimal() and len(word) <= 9 and int(word) > 0 for word in words):
        raise ConfigError(
            f"{flag} is {shown(text)}, but must be positive whole numbers, of at most 9 digits, between commas, "
            "such as 1,2,4"
        )
    return tuple(sorted({int(word) for word in words}))


def base_config(args: ScaleArgs) -> TrainConfig:
    """The configuration to measure, without evaluations and without an end; actors and environments come later.

    Raises:
        ConfigError: the preset or a setting is unknown or cannot be used.
    """
    argv = ["--preset", args.preset, *(f"--{setting}" for setting in args.set)]
    config = parse_train(argv, "drqn-dist train").config
    if config.mode != "ray":
        raise ConfigError(f"mode is {config.mode}, but only Ray mode has processes to scale")
    return replace(
        config, total_steps=10**15, stop_at_return=None, minutes=None, eval=replace(config.eval, period_updates=None)
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
