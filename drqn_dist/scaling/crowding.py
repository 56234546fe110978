"""How much slower a core is while its neighbours work: caches, memory and clock are shared, and what a virtual machine
calls a core may be half of one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from multiprocessing import get_context
from threading import BrokenBarrierError
from typing import Any

import numpy as np

from drqn_dist.config import TrainConfig
from drqn_dist.errors import RoleFailedError

START_S = 300.0
"""How long the processes may take to start."""

_barrier: Any = None
"""Of this process, set when the pool starts it."""


def measure_crowding(
    config: TrainConfig, processes: int, learner: bool, seconds: float = 3.0, repeats: int = 3
) -> float:
    """Runs the same work alone and then in every process at once, in turn.

    Args:
        config: what is played, and trained.
        processes: one for each core.
        learner: the work is a whole serial run, acting and training on the CPU; otherwise an actor whose fragments go
            nowhere.
        seconds: of each measurement.

    Returns:
        CPU seconds per step together over alone, minus 1; the median of the repeats, at least 0.

    Raises:
        RoleFailedError: the processes do not start, or one of them dies.
    """
    if processes < 2:
        return 0.0
    context = get_context("spawn")
    barrier = context.Barrier(processes)
    ratios = []
    with ProcessPoolExecutor(processes, context, _begin, (barrier,)) as pool:
        try:
            for _ in range(repeats):
                # All meet at the barrier in either case, so that each process gets exactly one of the calls.
                alone, together = (
                    [pool.submit(_play, config, learner, seconds if i < active else 0.0) for i in range(processes)]
                    for active in (1, processes)
                )
                first = [cost for future in alone if (cost := future.result()) is not None]
                ratios.append(
                    float(np.mean([cost for future in together if (cost := future.result()) is not None])) / first[0]
                )
        except BrokenBarrierError as error:
            raise RoleFailedError(f"{processes} processes did not start in {START_S:.0f} s; try again") from error
        except BrokenExecutor as error:
            raise RoleFailedError(f"one of {processes} processes died (out of memory?): {error}") from error
    return max(0.0, statistics.median(ratios) - 1)


def _begin(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _play(config: TrainConfig, learner: bool, seconds: float) -> float | None:
    """CPU seconds per agent step, or None if it was only to be there."""
    with (_training if learner else _acting)(config) as step:
        if not seconds:
            _barrier.wait(START_S)
            _barrier.wait(START_S)
            return None
        for _ in range(50):  # first calls allocate
            step()
        _barrier.wait(START_S)
        start, deadline, steps = time.process_time(), time.monotonic() + seconds, 0
        while time.monotonic() < deadline:
            steps += step()
        spent = time.process_time() - start
        _barrier.wait(START_S)
        return spent / steps


@contextmanager
def _acting(config: TrainConfig) -> Iterator[Callable[[], int]]:
    """A batched step of an actor; answers the agent steps taken."""
    from actors.actor import Actor
    from drqn_dist.bench.play import FixedWeights, fresh_weights
    from drqn_dist.envs.make import env_spec

    weights = FixedWeights(fresh_weights(config, env_spec(config.env)))
    with closing(Actor(config, 0, _Nowhere(), weights)) as actor:
        yield actor.step


@contextmanager
def _training(config: TrainConfig) -> Iterator[Callable[[], int]]:
    """The same with the updates that belong to it."""
    from drqn_dist.training.serial import SerialSession
    from drqn_dist.training.session import Report

    replay = replace(config.replay, min_steps=1, rate_tolerance_steps=None)
    learner = replace(config.learner, device="cpu")
    serial = replace(config, mode="serial", actors=1, replay=replay, learner=learner)
    with closing(SerialSession(serial)) as session:

        def step() -> int:
            before = session.agent_steps
            session.turn(Report())
            return session.agent_steps - before

        yield step


class _Nowhere:
    def push(self, payloads: Sequence[bytes]) -> None:
        """Drops the fragments."""
