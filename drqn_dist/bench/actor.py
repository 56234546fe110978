"""The actor beside its bare environments: what inference, fragments and compression cost."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import torch

from actors.actor import Actor
from drqn_dist.bench import BenchSettings, Figures, rate
from drqn_dist.bench.play import untrained
from drqn_dist.config import TrainConfig
from drqn_dist.envs.make import env_spec, make_batch_env
from drqn_dist.interfaces import BatchEnv
from drqn_dist.network.q_network import use_bf16


def bench(config: TrainConfig, settings: BenchSettings) -> dict[str, Any]:
    """Agent steps per second of a whole actor, whose fragments are encoded and then dropped, and of the same batch of
    environments with random actions; measured in turn on the same cores, as many as the actor has threads.

    Returns:
        agent_steps_per_s, env_only_steps_per_s, ratio, cpu_us_per_agent_step (of the whole actor, all threads),
        spread; env, envs, cores, precision. On a machine shared with others the CPU time is steadier than the rates.

    Raises:
        EnvError: the environment is unknown or not supported.
    """
    figures = Figures()
    cores = max(config.actor.env_threads, config.actor.torch_threads)
    with _pinned(cores):
        weights = untrained(config, env_spec(config.env))
        env = make_batch_env(config.env, config.actor.envs_per_actor, config.actor.env_threads)
        with closing(env), closing(Actor(config, 0, _Nowhere(), weights)) as actor:
            bare = _RandomPlay(env)
            for step in (bare.step, actor.step):
                rate(step, settings.seconds / 4)  # first calls allocate
            for _ in range(settings.repeats):
                env_only = rate(bare.step, settings.seconds)
                actor.take_stats()
                before = time.process_time()
                whole = rate(actor.step, settings.seconds)
                cpu_s = time.process_time() - before
                figures.add(
                    agent_steps_per_s=whole,
                    env_only_steps_per_s=env_only,
                    ratio=whole / env_only,
                    cpu_us_per_agent_step=1e6 * cpu_s / actor.take_stats().agent_steps,
                )
    return figures.result() | {
        "env": config.env.id,
        "envs": config.actor.envs_per_actor,
        "cores": cores,
        "precision": "bf16" if use_bf16(config.network.precision, "cpu") else "fp32",
    }


class _RandomPlay:
    """The environments alone; counts steps as the actor does."""

    def __init__(self, env: BatchEnv) -> None:
        self._env = env
        self._rng = np.random.default_rng(0)
        self._idle = np.zeros(env.num_envs, np.bool_)
        env.reset(0)

    def step(self) -> int:
        batch = self._env.step(self._rng.integers(0, self._env.spec.num_actions, self._env.num_envs))
        taken = int((~self._idle).sum())
        self._idle = batch.reset_pending & ~self._idle
        return taken


class _Nowhere:
    def push(self, payloads: Sequence[bytes]) -> None:
        """Drops the fragments."""


@contextmanager
def _pinned(cores: int) -> Iterator[None]:
    """Keeps this thread, and those it starts, on so many cores (where the system offers that)."""
    threads = torch.get_num_threads()
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    # OpenMP's threads stay for ever where they were started: none may start here that a later bench would use.
    torch.set_num_threads(cores)
    if before is not None:
        os.sched_setaffinity(0, sorted(before)[-cores:])  # the first one serves most interrupts
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if before is not None:
            os.sched_setaffinity(0, before)
