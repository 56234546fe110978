"""What a checkpoint says beside its tensors, and that it says it, before a session goes on from it."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from drqn_dist.errors import CheckpointError, shown

_MOST = 2**62
"""No number comes near it; larger ones would overflow what is computed from them."""


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _whole(value: Any) -> bool:
    return type(value) is int and abs(value) < _MOST


def _number(value: Any) -> bool:
    return type(value) is float or _whole(value)


def _weight(value: Any) -> bool:
    return _number(value) and math.isfinite(value) and value >= 0


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _table(value: Any) -> bool:
    return isinstance(value, dict)


def _random_state(value: Any) -> bool:
    try:
        np.random.default_rng(0).bit_generator.state = value
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return False
    return True


def _evaluation(value: Any) -> bool:
    """Updates behind the weights, and the scores of their games."""
    if not (isinstance(value, list) and len(value) == 2 and _count(value[0]) and isinstance(value[1], list)):
        return False
    return len(value[1]) > 0 and all(map(_number, value[1]))


_Rule = Callable[[Any], bool] | Mapping[str, Any] | list[Any]
"""What an entry must be: as a function says, a table with these entries and maybe more, or a list of such."""

_REPLAY: dict[str, Any] = {
    "limiter": {
        "inserted_steps": _count,
        "counted_steps": _count,
        "sampled_steps": _count,
        "filled_steps": _count,
        "debt": _whole,
        "bounds": _texts,
    },
    "sampler": {"rng": _random_state, "next_id": _count, "largest": _weight, "capacity": _count},
    "counts": {"duplicates": _count, "rejected": _count, "late_priorities": _count},
}
_NEEDED: dict[str, Any] = {
    "learner": {"updates": _count, "inserted_steps": _count},
    "agent_steps": _count,
    "incarnation": _whole,
}
_REST: dict[str, Any] = {
    "wall_s": _weight,
    "starts": _count,
    "final_seed": _count,
    "monitor": {
        "episodes": [{"score": _number, "steps": _count, "epsilon": _number}],
        "evaluations": [_evaluation],
    },
    "turn": _count,
    "serial": _table,
}
"""What only a serial run says, or only one that its training loop wrote."""


def check_facts(meta: Mapping[str, Any], path: Path) -> None:
    """Checks a checkpoint's metadata.

    Args:
        path: of the checkpoint, for the message.

    Raises:
        CheckpointError: something that a session needs is missing or cannot be; the message names it with its value.
    """
    try:
        _check(meta, _NEEDED | {name: rule for name, rule in _REST.items() if name in meta}, "")
        states = meta.get("replay")
        if not isinstance(states, list) or not states:
            raise ValueError(f"replay is {shown(states)}, but must be a list with an entry for each shard")
        for shard, state in enumerate(states):
            if state is not None:  # one that had told nothing of itself yet
                _check(state, _REPLAY, f"replay[{shard}]")
    except ValueError as error:
        raise CheckpointError(
            f"{path} cannot be gone on from: {error}; it is damaged or of another version; move it away to resume from "
            "an earlier one"
        ) from error


def _check(value: Any, rule: _Rule, name: str) -> None:
    """
    Raises:
        ValueError: the value is not what the rule says.
    """
    if isinstance(rule, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} is {shown(value)}, but must be a table")
        for entry, inner in rule.items():
            path = f"{name}.{entry}" if name else entry
            if entry not in value:
                raise ValueError(f"it lacks {path}")
            _check(value[entry], inner, path)
    elif isinstance(rule, list):
        if not isinstance(value, list):
            raise ValueError(f"{name} is {shown(value)}, but must be a list")
        for number, item in enumerate(value):
            _check(item, rule[0], f"{name}[{number}]")
    elif not rule(value):
        raise ValueError(f"{name} is {shown(value)}, which cannot be")
