"""Where the roles of a run live in the cluster: all but the actors together, the actors wherever there is a CPU."""

import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

from ray.exceptions import RayError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from drqn_dist.config import TrainConfig
from drqn_dist.distributed.channels import RAY
from drqn_dist.distributed.local_ray import LocalRay
from drqn_dist.errors import ConfigError
from drqn_dist.training.memory import usable_cores

JOIN_S = 600.0
"""How long a run waits for a cluster to have room for its learner; an autoscaler may have to start a machine first."""
_HEAD = "node:__internal_head__"
"""A resource that Ray gives to the head alone, 1 of it."""
PATIENCE_S = 5.0
"""How long the head gets to say that it has room, and a GPU to become free: one that was just given back is counted a
moment later. After that a run says what it waits for."""

ACTOR_OPTIONS: dict[str, Any] = {"scheduling_strategy": "SPREAD"}
"""An actor takes a CPU of whichever node has most to spare; without one it waits, which an autoscaler sees."""


class Placement:
    """Room for learner, replay and evaluator on one node, or as few as have it. With a GPU it is that GPU's node,
    otherwise the head if it has so many CPUs free: other nodes may leave, and then cost actors only."""

    def __init__(self, config: TrainConfig, say: Callable[[str], None] | None = None) -> None:
        """
        Raises:
            ConfigError: the cluster had no such room in time.
        """
        say = say or (lambda line: print(line, file=sys.stderr, flush=True))
        self.gpus = learner_gpus(config, say)
        others = config.replay.shards + 1
        bundles = [{"CPU": 1.0, "GPU": float(self.gpus)} if self.gpus else {"CPU": 1.0}]
        bundles += [{"CPU": 1.0}] * others
        self._group: PlacementGroup | None = None
        try:
            self._find_room(bundles, say)
        except BaseException:
            self.close()
            raise

    def _find_room(self, bundles: list[dict[str, float]], say: Callable[[str], None]) -> None:
        if not self.gpus and _head_cpus() >= len(bundles):
            self._group = placement_group([{"CPU": 1.0, _HEAD: 0.001}, *bundles[1:]], strategy="STRICT_PACK")
            if self._group.wait(PATIENCE_S):
                return
            self.close()  # another run lives there
        self._group = placement_group(bundles, strategy="PACK")
        needed = f"{len(bundles)} CPUs{f' and {self.gpus} GPU' if self.gpus else ''} for all roles but the actors"
        if self._group.wait(PATIENCE_S):
            return
        say(f"waiting up to {JOIN_S:.0f} s for {needed}; the cluster has {_described()}")
        deadline = time.monotonic() + JOIN_S
        while not self._group.wait(1):  # a signal is only seen between two of these
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"the cluster had no room for {needed} within {JOIN_S:.0f} s; it has {_described()}: add a "
                    "node, or lower replay.shards"
                )

    def learner(self) -> dict[str, Any]:
        """Ray options of the learner."""
        return {"num_gpus": self.gpus, **self.other(-1)}

    def other(self, index: int) -> dict[str, Any]:
        """Ray options of a replay shard, or, after the last of them, of the evaluator."""
        assert self._group is not None
        strategy = PlacementGroupSchedulingStrategy(
            placement_group=self._group,
            placement_group_bundle_index=1 + index,
            placement_group_capture_child_tasks=False,
        )
        return {"scheduling_strategy": strategy}

    def has_room(self) -> bool:
        """Whether all of it is there; not while Ray looks for other nodes in place of one that left."""
        return bool(placement_group_table(self._group)["state"] == "CREATED")

    def close(self) -> None:
        """Gives the room back; whoever still lives there ends."""
        if self._group is not None:
            with suppress(RayError, ValueError):
                remove_placement_group(self._group)


def check_device(config: TrainConfig) -> None:
    """
    Raises:
        ConfigError: the learner is to have one GPU in particular, which is Ray's to choose.
    """
    kind, _, number = config.learner.device.partition(":")
    if kind == "cuda" and number:
        raise ConfigError(
            f"learner.device is {config.learner.device!r}, but in Ray mode it is Ray that gives the learner a GPU, "
            f"and the learner's process sees that one alone; to use GPU {number}, start this run's Ray (or the node of "
            f"the cluster) with CUDA_VISIBLE_DEVICES={number} and --learner.device cuda"
        )


def learner_gpus(config: TrainConfig, say: Callable[[str], None], patience_s: float = PATIENCE_S) -> int:
    """Whether the learner is to have a GPU: 1 where one is asked for, or the device is auto and one is free.

    Args:
        say: hears that the learner trains on the CPU because others have the GPUs.
        patience_s: how long one gets to become free.
    """
    if config.learner.device.startswith("cuda"):
        return 1
    if config.learner.device != "auto" or (gpus := RAY.cluster_resources().get("GPU", 0)) < 1:
        return 0
    deadline = time.monotonic() + patience_s
    while RAY.available_resources().get("GPU", 0) < 1:
        if time.monotonic() >= deadline:
            say(
                f"none of the cluster's {gpus:g} GPUs is free: the learner trains on the CPU; to wait for a GPU, use "
                "--learner.device cuda"
            )
            return 0
        time.sleep(0.2)  # Ray offers nothing to wait on here
    return 1


def fitting_actors(config: TrainConfig) -> int:
    """As many actors as there are CPUs free now beside the other roles, at least one for each shard: of the cluster
    to join, or of this machine, where the others share a CPU with the system.

    Raises:
        ConfigError: the cluster cannot be joined.
    """
    if config.address is None:
        free = usable_cores() - 1
    else:
        with closing(LocalRay(config.address, cpus=0, store_bytes=0)):
            others = 2 + config.replay.shards
            free = int(RAY.available_resources().get("CPU", 0)) - others
    return max(free, config.replay.shards)


def _head_cpus() -> float:
    """Of the cluster's head, used or not."""
    nodes = [node["Resources"] for node in RAY.nodes() if node["Alive"]]
    return max((float(node.get("CPU", 0)) for node in nodes if _HEAD in node), default=0.0)


def living_nodes() -> set[str]:
    """Ids of the cluster's nodes."""
    return {str(node["NodeID"]) for node in RAY.nodes() if node["Alive"]}


def _described() -> str:
    resources = RAY.cluster_resources()
    nodes = len(living_nodes())
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs on {nodes} node{'s' * (nodes != 1)}"
