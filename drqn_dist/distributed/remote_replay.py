"""The replay behind Ray: like `remote.py`, but without torch, which would take three times as long to start."""

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from drqn_dist.config import TrainConfig
from drqn_dist.distributed.channels import RAY, Pulse
from drqn_dist.distributed.placement import Placement
from drqn_dist.interfaces import Held
from replay_server.make import make_replay
from replay_server.rate_limiter import Balance
from replay_server.shards import ShardAnswer


class ReplayRole:
    """Replay, or a shard of it, in a process of its own. Pushes, samples and everything else have threads of their own,
    so that a push that waits for the rate limiter does not keep a sample from being answered."""

    def __init__(self, config: TrainConfig, shard: int) -> None:
        self._replay = make_replay(config, shard)
        self._begun = threading.Event()
        self._note = ""

    def begin(self, state: dict[str, Any] | None, journal: Path | None = None) -> Pulse:
        """Goes on from its journal and these counters, as far as there are any, and lets waiting pushes and samples
        in."""
        if not self._begun.is_set():
            notes = [self._replay.begin(state, journal)]
            # The run's process has written that file; what only a replay writes would be there as well.
            if journal is not None and self._replay.keeps_journal and not os.path.isfile(journal.parent / "shards"):
                notes.append(
                    "does not see the run's folder: its journal lies on its own node's disk and is lost with the node; "
                    "let --run-dir be a disk that all nodes see"
                )
            self._note = "; ".join(filter(None, notes))
            self._begun.set()
        return Pulse(note=self._note)

    @ray.method(concurrency_group="push")
    def push(self, payloads: Sequence[bytes]) -> None:
        self._begun.wait()
        for payload in payloads:
            self._replay.push(payload)

    @ray.method(concurrency_group="sample")
    def sample(
        self,
        counts: Sequence[int],
        held: Held,
        fresh_limit: int,
        timeout_s: float,
        call_steps: int,
        elsewhere: Balance | None,
    ) -> ShardAnswer:
        self._begun.wait()
        return self._replay.sample(counts, held, fresh_limit, timeout_s, call_steps, elsewhere)

    @ray.method(concurrency_group="priorities")
    def update_priorities(self, ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]) -> None:
        if self._begun.is_set():  # while its journal is read, nobody is to wait for it
            self._replay.update_priorities(ids, priorities)

    def pulse(self) -> Pulse | None:
        """None before `begin`."""
        if not self._begun.is_set():
            return None
        return Pulse(stats=self._replay.stats(), state=self._replay.get_state())

    def cpu_s(self) -> float:
        """CPU seconds of the process since it was started, Ray's threads included."""
        return time.process_time()


def start_replay(
    config: TrainConfig,
    run: str,
    states: Sequence[dict[str, Any] | None] | None = None,
    where: Placement | None = None,
    journals: Sequence[Path | None] | None = None,
) -> list[Any]:
    """The processes of the replay's shards, told to begin; Ray starts each again if it dies, and then it waits for
    another `begin`.

    Args:
        run: a name that no other run has; find_replay finds them by it.
        states: of the shards, to go on from.
        where: room reserved for them; None leaves it to Ray.
        journals: folders of their journals.
    """
    groups = {"push": 4, "sample": 1, "priorities": 1}
    remote = RAY.remote(num_cpus=1, max_restarts=-1, concurrency_groups=groups)(ReplayRole)
    shards = []
    for shard in range(config.replay.shards):
        options = where.other(shard) if where else {}
        named = remote.options(name=_replay_name(run, shard), **options)
        handle = named.remote(config, shard)
        handle.begin.remote(
            states[shard] if states is not None else None, journals[shard] if journals is not None else None
        )
        shards.append(handle)
    return shards


def find_replay(config: TrainConfig, run: str) -> list[Any]:
    """The shards that `start_replay` started. By name, because Ray cannot promise to start an actor again whose
    arguments hold handles."""
    return [ray.get_actor(_replay_name(run, shard)) for shard in range(config.replay.shards)]


def _replay_name(run: str, shard: int) -> str:
    return f"{run}-replay-{shard}"
