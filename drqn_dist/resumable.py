"""What a run that goes on may change, and how a change is described.

A setting is fixed if something that is kept depends on it: the weights, the optimizer's moments, the fragments of the
replay, or what the run's name and curve stand for. All others may change: step size, exploration and evaluations are
functions of the configuration and of the run's counters, and the rate limiter begins a new balance where its bounds
are others.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from drqn_dist.config import TrainConfig, differences, setting
from drqn_dist.errors import ConfigError

_GAME = "its weights and its curve belong to that game"
_NETWORK = "its weights belong to that network"
_VALUES = "its weights hold values on that scale"
_MOMENTS = "the optimizer's moments were made with it"
_WINDOWS = "fragments are cut and kept for such windows"

_FIXED_SECTIONS = {"env": _GAME, "network": _NETWORK}
_FIXED = {
    "preset": "it names where the run's settings came from, and would change none of them; name each setting instead",
    "seed": "the run's random streams and its name belong to it",
    "run_dir": "the run goes on in the folder that --resume names; move that folder, and name its new place",
    "learner.unroll_steps": _WINDOWS,
    "learner.burn_in_steps": _WINDOWS,
    "learner.n_step": _WINDOWS,
    "learner.stored_state": _WINDOWS,
    "replay.window_stride_steps": _WINDOWS,
    "actor.fragment_steps": _WINDOWS,
    "learner.gamma": _VALUES,
    "learner.rescale_values": _VALUES,
    "learner.reward_scale": _VALUES,
    "learner.clip_rewards": _VALUES,
    # Another loss has gradients of another size, for which the second moments would be wrong by its square.
    "learner.loss": _MOMENTS,
    "learner.loss_over_time": _MOMENTS,
    "learner.optimizer": _MOMENTS,
}
_FREE = frozenset(["network.precision"])
"""Of the fixed sections: how numbers are computed, not what they are; weights are kept as float32."""


def is_fixed(name: str) -> bool:
    """Whether a run that goes on must keep this setting, named as in `learner.gamma`."""
    return name in _FIXED or (name.partition(".")[0] in _FIXED_SECTIONS and name not in _FREE)


def resumed_config(saved: TrainConfig, asked: TrainConfig, run: Path) -> TrainConfig:
    """The configuration with which a run goes on: what was asked for, in the place where the run's folder lies now.

    Args:
        saved: of the run so far.
        asked: the same with changes.
        run: the run's folder; it may have been moved since.

    Raises:
        ConfigError: settings that must stay were changed; the message names them, the first with both values.
    """
    place = saved.run_dir
    if Path(place).resolve() != run.resolve().parent:
        place = str(run.parent if run.name not in ("", "..") else run.resolve().parent)
    refused = [name for name in differences(saved, asked) if is_fixed(name)]
    if Path(asked.run_dir).resolve() == run.resolve().parent:
        refused = [name for name in refused if name != "run_dir"]
    if refused:
        name, *others = refused
        also = f"; nor can it change {', '.join(others)}" if others else ""
        raise ConfigError(_refusal(name, setting(saved, name), setting(asked, name), run) + also)
    return replace(asked, run_dir=place)


def _refusal(name: str, old: Any, new: Any, run: Path) -> str:
    said = f"--resume cannot change {name} from {old} to {new}: "
    if name in ("preset", "run_dir"):
        return said + _FIXED[name]
    why = _FIXED.get(name) or _FIXED_SECTIONS[name.partition(".")[0]]
    only = " where their shapes are the same" if why == _NETWORK else ""
    return f"{said}{why}; leave it as it is, or start a new run from its weights with --init-from {run}{only}"


def changes(old: TrainConfig, new: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Old and new value of each setting in which two configurations differ, in order of declaration."""
    return {name: (setting(old, name), setting(new, name)) for name in differences(old, new)}


def describe_changes(old: TrainConfig, new: TrainConfig, updates: int) -> list[str]:
    """What is changed after so many updates, a line each."""
    lines = [f"{name}: {now}, was {before}" for name, (before, now) in changes(old, new).items()]
    before, now = (config.learner.learning_rate_at(updates) for config in (old, new))
    halving = old.learner.learning_rate_halving_updates or new.learner.learning_rate_halving_updates
    if halving and before != now:
        # The schedule counts from update 0, so the rate that holds now is not the number that was given.
        lines.append(f"the step size at update {updates:,} is {now:g} by its halving, was {before:g}")
    return lines
