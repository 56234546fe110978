"""Settings of a configuration by their dotted names, as on the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from drqn_dist.config import TrainConfig

RESUMABLE = frozenset(
    ["total_steps", "minutes", "stop_at_return", "address", "log_period_s", "checkpoint_period_s", "checkpoints_kept"]
)
"""Settings that a resumed run may change: when to stop, where to run, how often to report and save."""


def setting(config: TrainConfig, name: str) -> Any:
    """The value of, for example, `learner.gamma`."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def differences(first: TrainConfig, second: TrainConfig) -> list[str]:
    """Dotted names of the settings in which two configurations differ, in order of declaration."""
    return list(_differences(first, second, ""))


def _differences(first: Any, second: Any, prefix: str) -> Iterator[str]:
    for field in dataclasses.fields(first):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if dataclasses.is_dataclass(one):
            yield from _differences(one, other, f"{prefix}{field.name}.")
        elif one != other:
            yield prefix + field.name
