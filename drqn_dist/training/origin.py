"""Where a run begins: with its own newest checkpoint, or with the weights of another run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from drqn_dist.checkpoint import Checkpoint, weights_sha256
from drqn_dist.config import TrainConfig, differences, setting, with_settings
from drqn_dist.errors import CheckpointError, ConfigError, DrqnError
from drqn_dist.experiments.run_folder import RunFolder, open_run
from drqn_dist.interfaces import SHARD_STRIDE, EnvSpec
from drqn_dist.network.q_network import QNetwork
from drqn_dist.training.facts import check_facts
from drqn_dist.training.session import Saved
from learner.train_state import TrainState, load_network

Shapes = dict[str, tuple[int, ...]]

_SUMMED = ("inserted_steps", "counted_steps", "sampled_steps", "debt")
_COUNTED = ("duplicates", "rejected", "late_priorities")


def resumed_state(run: RunFolder, config: TrainConfig) -> Saved:
    """The newest checkpoint of a run that is whole, for a session of this configuration.

    Raises:
        CheckpointError: it has none, what that says cannot be, or, in serial mode, the disk does not give it.
    """
    # What a serial run goes on from is what its journal is cut to. In Ray mode an earlier one costs updates alone.
    checkpoint = _newest(run, skip_unread=config.mode == "ray")
    check_facts(checkpoint.meta, checkpoint.path)
    replay = fit_replay(checkpoint.meta["replay"], _shards(config))
    for state in replay:
        if state is not None:  # a tree has room for twice the windows that can be stored, which are fewer than steps
            sampler = state["sampler"]
            sampler["capacity"] = min(sampler["capacity"], 2 * config.replay.capacity_steps)
    return Saved(checkpoint.tensors, checkpoint.meta | {"replay": replay})


def fit_replay(states: Sequence[dict[str, Any] | None], shards: int) -> list[dict[str, Any] | None]:
    """Saved states of the replay's shards, for another number of shards.

    Counters and debts are sums over the shards: the first new one goes on from those of all old ones together, and
    with the random stream of the first of them; the others begin at zero, with streams of their own. So what the whole
    has counted never runs backwards, and the ratio of samples to inserts goes on where it was. Contents are not in the
    states, and window ids of before the stop are nobody's any more.
    """
    known = [state for state in states if state is not None]
    if len(states) == shards or not known:
        return list(states) if len(states) == shards else [None] * shards
    limiters, counts = [state["limiter"] for state in known], [state["counts"] for state in known]
    sampler = known[0]["sampler"]  # another shard's ids would name a shard that is no more
    whole = {
        "limiter": limiters[0] | {name: sum(limiter[name] for limiter in limiters) for name in _SUMMED},
        "sampler": sampler | {"next_id": sampler["next_id"] % SHARD_STRIDE},
        "counts": {name: sum(count[name] for count in counts) for name in _COUNTED},
    }
    return [whole, *[None] * (shards - 1)]


def initial_state(run: Path, config: TrainConfig, spec: EnvSpec) -> tuple[Saved, dict[str, Any]]:
    """What a new run begins with whose weights are those of another run's newest readable checkpoint.

    Online and target network get its online weights; the optimizer, the replay and all counters begin anew.

    The mean picture of `network.center_pixels` is part of the weights, so the actors play with it while the replay
    fills. Before the first update it is measured anew, over this run's own frames, as in every new run: in another
    game the old picture would leave both games' backgrounds in what the network sees, and in the same game both are
    nearly alike. With centring in only one of the two runs, the first layer would read pixels on another scale (1/40
    instead of 1/255), for which its weights were not made: that is refused.

    Returns:
        What a session goes on from, and for `config.json` whose weights these are.

    Raises:
        RunFolderError, CheckpointError: the other run cannot be read, or has no checkpoint.
        ConfigError: its network has other shapes, or only one of the two is centred.
    """
    source = open_run(run)
    checkpoint = _newest(source)
    there: Shapes = {
        name.removeprefix("network."): tuple(tensor.shape)
        for name, tensor in checkpoint.tensors.items()
        if name.startswith("network.")
    }
    _require_shapes(run, there, source.config, config, spec)
    for name in ("center_pixels", "standardize_vectors"):
        there_too, here = (getattr(c.network, name) for c in (source.config, config))
        if there_too != here:
            raise ConfigError(
                f"--init-from {run} cannot be used: network.{name} is {there_too} there and {here} here, so its "
                f"weights were made for inputs on another scale; use --network.{name.replace('_', '-')} "
                f"{str(there_too).lower()}"
            )
    state = TrainState(config, spec, torch.device("cpu"))
    load_network(state.network, checkpoint.tensors, "network.")
    state.copy_target()
    meta = {"learner": {"updates": 0, "inserted_steps": 0}, "replay": [None] * _shards(config)}
    note = {
        "run": run.resolve().name,
        "update": checkpoint.updates,
        "weights_sha256": weights_sha256(checkpoint.tensors),
    }
    return Saved(state.to_tensors(), meta), note


def _newest(run: RunFolder, skip_unread: bool = False) -> Checkpoint:
    checkpoint = run.checkpoints.latest(skip_unread)
    if checkpoint is None:
        raise CheckpointError(f"{run.path} holds no checkpoint to go on from; start a new run")
    return checkpoint


def _shards(config: TrainConfig) -> int:
    return config.replay.shards if config.mode == "ray" else 1


def _require_shapes(run: Path, there: Shapes, source: TrainConfig, config: TrainConfig, spec: EnvSpec) -> None:
    here = _shapes(config, spec)
    for name in [*here, *(name for name in there if name not in here)]:
        if there.get(name) != here.get(name):
            shapes = [f"of shape {part[name]}" if name in part else "missing" for part in (there, here)]
            raise ConfigError(
                f"--init-from {run} cannot be used: its network differs first in {name}, which is {shapes[0]} there "
                f"and {shapes[1]} here; {_reason(name, there, source, config, spec)}"
            )


def _reason(name: str, there: Shapes, source: TrainConfig, config: TrainConfig, spec: EnvSpec) -> str:
    """What makes a parameter's shape another one than there: each candidate is tried alone, as it is there."""
    names = [n for n in differences(config, source) if n.startswith("network.") or n == "env.stack_frames"]
    others = []
    for candidate in names:
        words = f"{candidate} is {setting(source, candidate)} there and {setting(config, candidate)} here"
        try:
            shapes = _shapes(with_settings(config, {candidate: setting(source, candidate)}), spec)
        except DrqnError:  # it does not go with the others as they are here
            others.append(words)
            continue
        if shapes.get(name) == there.get(name):
            return words
        if shapes != _shapes(config, spec):
            others.append(words)
    actions = _num_actions(there, source)
    if actions is not None and _shapes(config, replace(spec, num_actions=actions)).get(name) == there.get(name):
        return f"the environment there has {actions} actions and the one here {spec.num_actions}"
    return "; ".join(others) or "the environments' observations differ in their shape"


def _num_actions(shapes: Shapes, source: TrainConfig) -> int | None:
    """None where they do not tell."""
    if source.network.head == "gru_q":
        names = ["core.rnn.weight_hh_l0"]
    else:
        names = [n for n in shapes if n.startswith("head.") and n.endswith("bias") and "value" not in n]
    shape = shapes.get(max(names, default=""), ())
    return shape[-1] if shape and 0 < shape[-1] < 10**6 else None


def _shapes(config: TrainConfig, spec: EnvSpec) -> Shapes:
    with torch.device("meta"):  # takes no memory
        network = QNetwork(config.network, spec, config.env.stack_frames)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
