"""Several Ray nodes on this machine, to measure what the calls between nodes cost. They share its cores and memory, so
what they show is the price of Ray's copies and messages, not of a network."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from drqn_dist.config import TrainConfig
from drqn_dist.distributed.local_ray import OWN_RAY, locked, own_signals, reread_authentication, short_folder
from drqn_dist.errors import ConfigError
from drqn_dist.interfaces import EnvSpec
from drqn_dist.training.memory import object_store_bytes


def check_nodes(count: int, actors: int) -> None:
    """
    Raises:
        ConfigError: there are more actor nodes than actors.
    """
    if count - 1 > actors:
        raise ConfigError(
            f"--nodes {count} are one head and {count - 1} for actors, but there are {actors} of them; measure these "
            "nodes with more --actors, in a call of their own"
        )


@contextmanager
def on_nodes(config: TrainConfig, spec: EnvSpec, count: int) -> Iterator[TrainConfig]:
    """The configuration to run on so many nodes: a head with replay, loaders and learner, the others with the actors.
    With one node it is the configuration as it is, and the run starts its own Ray. The nodes listen on the machine's
    own address (Ray's `Cluster` knows no other), to nobody without a token made for them.

    Raises:
        ConfigError: there are more actor nodes than actors, or Ray does not start.
    """
    if count == 1:
        yield config
        return
    check_nodes(count, config.num_actors)
    from ray import cluster_utils

    folder = tempfile.mkdtemp(prefix="drqn-ray-", dir=short_folder())
    wanted = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": folder,  # Ray notes there which cluster is the machine's: these nodes are not
        **OWN_RAY,
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    reread_authentication()
    lock = locked(Path(folder))  # who finds it unlocked may remove it
    cluster: Any = cluster_utils.Cluster()
    try:
        store = object_store_bytes(config, spec)
        each = -(-config.num_actors // (count - 1))
        try:
            with own_signals():  # Ray would take SIGTERM over
                cluster.add_node(
                    num_cpus=2 + config.replay.shards + config.learner.loaders,  # learner and evaluator besides
                    object_store_memory=store,
                    temp_dir=f"{folder}/ray",  # Ray opens it to everyone; the folder around it stays this user's own
                    include_dashboard=False,
                )
                for _ in range(count - 1):
                    cluster.add_node(num_cpus=each, object_store_memory=store)
        except (OSError, RuntimeError, ValueError, TimeoutError) as error:
            raise ConfigError(f"cannot start {count} Ray nodes on this machine: {error}; try --nodes 1") from error
        yield replace(config, address=cluster.address)
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
