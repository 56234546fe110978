"""Measures actor, replay and learner on this machine. Light to import: each role's bench is imported when run."""

import importlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from drqn_dist.config import ActorConfig, Bounded, NetworkConfig, TrainConfig, Within
from drqn_dist.presets import preset

Role = Literal["actor", "replay", "learner"]
ROLES: tuple[Role, ...] = ("actor", "replay", "learner")

ACTOR_REFERENCE = TrainConfig(
    preset="bench-actor",
    network=NetworkConfig(torso="nature", core="gru", core_units=512),
    actor=ActorConfig(envs_per_actor=64),
)
"""Pong at 84x84, Nature CNN + GRU 512 on one core: the actor that its goal is set for. 64 environments, because
larger batches give no more steps per second."""


@dataclass(frozen=True)
class BenchSettings(Bounded):
    """How long and how often each figure is measured."""

    _path = "--"

    seconds: Annotated[float, Within(1e-3, 3600)] = 2.0
    """Seconds of one measurement."""
    repeats: Annotated[int, Within(1, 10_000)] = 5
    """Measurements of each figure; the two sides of a ratio are measured in turn."""
    play_steps: Annotated[int, Within(1, 10**8)] = 16_000
    """Agent steps played to fill the replay with."""


def run_bench(role: Role, preset_name: str | None = None, settings: BenchSettings | None = None) -> dict[str, Any]:
    """Measures one role.

    Args:
        role: actor, replay or learner.
        preset_name: configuration; None: `ACTOR_REFERENCE` for the actor, pong-cpu for the others.
        settings: None for the defaults.

    Returns:
        Figures by name, each the median of its repeats; `spread`: {name: [least, greatest]}; what they belong to.

    Raises:
        ConfigError: there is no such preset, or it cannot run.
    """
    config = ACTOR_REFERENCE if preset_name is None and role == "actor" else preset(preset_name or "pong-cpu")
    module = importlib.import_module(f"drqn_dist.bench.{role}")
    measured: dict[str, Any] = module.bench(config, settings or BenchSettings())
    return measured


class Figures:
    """Collects measurements by name."""

    def __init__(self) -> None:
        self._values: defaultdict[str, list[float]] = defaultdict(list)

    def add(self, **values: float) -> None:
        for name, value in values.items():
            self._values[name].append(value)

    def result(self) -> dict[str, Any]:
        """{name: median of its measurements, ..., "spread": {name: [least, greatest]}}"""
        medians: dict[str, Any] = {name: statistics.median(values) for name, values in self._values.items()}
        return medians | {"spread": {name: [min(values), max(values)] for name, values in self._values.items()}}


def rate(work: Callable[[], int], seconds: float) -> float:
    """Units of work per second, over calls of `work`, each of which answers how many it did, for about `seconds`."""
    start, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds or not done:
        done += work()
    return done / elapsed
