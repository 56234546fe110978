"""All that is checked before a run starts, without starting or writing anything; `train --dry-run` ends after it."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from drqn_dist.config import TrainConfig
from drqn_dist.envs.make import env_spec
from drqn_dist.errors import ConfigError, RunFolderError
from drqn_dist.experiments.run_folder import RunFolder, open_run
from drqn_dist.interfaces import EnvSpec
from drqn_dist.network.q_network import QNetwork
from drqn_dist.resumable import resumed_config
from drqn_dist.training.memory import Needs, check_disk, check_memory, estimate_memory, plan_frame_store
from drqn_dist.training.origin import initial_state, resumed_state
from drqn_dist.training.session import Saved
from learner.learner import resolve_device
from replay_server.make import make_replay


@dataclass(frozen=True)
class Prepared:
    """A run that may start."""

    config: TrainConfig
    """With the number of actors filled in."""
    spec: EnvSpec
    memory: Needs
    """Without the frame store where the machines of a cluster decide."""
    disk: Needs
    before: RunFolder | None
    """Of the run to go on with, as it was before."""
    state: Saved | None
    """What the session begins with, unless everything is new."""
    init_from: dict[str, Any] | None
    """For `config.json`: whose weights these are, where they are those of another run."""


def prepare(
    config: TrainConfig, resume: Path | None = None, init_from: Path | None = None, ask_cluster: bool = True
) -> Prepared:
    """Checks a run, and reads what it begins with.

    Args:
        config, resume, init_from: as of `train`.
        ask_cluster: for the number of actors that fit, where it is automatic; otherwise as if there were one.

    Raises:
        ConfigError: the configuration cannot run on this machine, or cannot go on with that run.
        RunFolderError, CheckpointError: the other folder or its checkpoint cannot be used, or no run folder be made.
    """
    if resume is not None and init_from is not None:
        raise ConfigError(
            f"--resume {resume} goes on with a run and --init-from {init_from} begins a new one; leave one of them out"
        )
    before = None if resume is None else open_run(resume)
    if before is not None:
        config = resumed_config(before.config, config, before.path)
    spec = env_spec(config.env)
    if config.actors is None and config.mode == "ray" and (ask_cluster or config.address is None):
        from drqn_dist.distributed.placement import fitting_actors  # Ray takes a second to import

        config = replace(config, actors=fitting_actors(config))
    config = replace(config, actors=config.num_actors)
    with torch.device("meta"):  # refuses a network that does not fit the observations, without memory
        QNetwork(config.network, spec, config.env.stack_frames)
    if config.address is None:
        memory = check_memory(config, spec)
        resolve_device(config.learner.device)
    else:  # the cluster's machines decide
        memory = Needs(estimate_memory(config, spec), None)
    if before is None:
        _check_place(Path(config.run_dir))
    # Refuses a rate limiter that would deadlock, before any process is started.
    make_replay(config, None if config.mode == "serial" else 0)
    disk = check_disk(config, spec, resume)
    state, note = None, None
    if before is not None:
        state = resumed_state(before, config)
    elif init_from is not None:
        state, note = initial_state(init_from, config, spec)
    return Prepared(config, spec, memory, disk, before, state, note)


def _check_place(root: Path) -> None:
    """Refuses a `run_dir` that is, or lies under, something else than a folder that may be written."""
    there = next(path for path in (root, *root.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        wrong = "is no folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        wrong = "may not be written"
    else:
        return
    raise RunFolderError(
        f"cannot create a run folder under {root}: {there} {wrong}; choose another place with --run-dir"
    )


def dry_run(config: TrainConfig, resume: Path | None = None, init_from: Path | None = None) -> str:
    """What a run would take of memory and disk, as a table; nothing is started or written.

    Raises:
        DrqnError: as `prepare`; then the run would not start.
    """
    prepared = prepare(config, resume, init_from, ask_cluster=False)
    config = prepared.config
    lines = [
        f"{config.env.id} · {config.preset} · seed {config.seed} · {config.mode} · {config.num_actors} actor(s) of "
        f"{config.actor.envs_per_actor} environment(s)",
        *_table("memory at most", prepared.memory),
    ]
    if config.address is None:
        lines.append(f"  {plan_frame_store(config, prepared.spec)}")
    else:
        lines.append("  without the frame store: on a cluster, that and the rest depend on its machines")
    lines += _table(f"disk at most, at {config.run_dir}", prepared.disk)
    return "\n".join(lines)


def _table(title: str, needs: Needs) -> list[str]:
    rows = {**needs.parts, "together": needs.total}
    lines = [f"{title:<32}{'MB':>12}", *(f"  {name:<30}{_mb(size)}" for name, size in rows.items())]
    return [
        *lines,
        f"  {'free':<30}{'unknown':>12}" if needs.available is None else f"  {'free':<30}{_mb(needs.available)}",
    ]


def _mb(size: int) -> str:
    return f"{size / 1024**2:>12,.1f}"
