"""Fills a replay with copies of some fragments. Imports no torch, so that a process that measures its own memory holds
the replay alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import psutil

from drqn_dist.codec import decode, encode
from drqn_dist.config import ReplayConfig, WindowShape
from replay_server.replay import Replay

NEVER_BLOCKS_STEPS = 10**9
MAX_STEPS = 100_000
"""A replay measured for speed holds the configured capacity, at most this much."""


def unblocked(config: ReplayConfig, capacity_steps: int) -> ReplayConfig:
    """The same replay, of another capacity, with a rate limiter that lets everyone through."""
    return replace(
        config,
        capacity_steps=capacity_steps,
        capacity_bytes=2**50,
        min_steps=1,
        rate_tolerance_steps=NEVER_BLOCKS_STEPS,
    )


def copies(payloads: list[bytes], max_bytes: int) -> Iterator[list[bytes]]:
    """The fragments again and again, each time as those of another actor, in bytes of their own."""
    for actor_id in itertools.count(1):
        yield [encode(replace(decode(payload, max_bytes), actor_id=actor_id)) for payload in payloads]


def fill(replay: Replay, supply: Iterator[list[bytes]], steps: int) -> None:
    """Pushes fragments until the replay has received so many steps."""
    for pieces in supply:
        for piece in pieces:
            if replay.stats().inserted_steps >= steps:
                return
            replay.push(piece)


def measure_memory(payloads: list[bytes], config: ReplayConfig, window: WindowShape, steps: int) -> tuple[int, int]:
    """Resident bytes of a new process before and after its replay is filled with so many steps."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_fill_and_measure, payloads, config, window, steps).result()


def _fill_and_measure(payloads: list[bytes], config: ReplayConfig, window: WindowShape, steps: int) -> tuple[int, int]:
    process = psutil.Process()
    before = process.memory_info().rss
    settings = unblocked(config, steps + window.fragment)
    replay = Replay(settings, window, batch_windows=1, tolerance_steps=NEVER_BLOCKS_STEPS, seed=0)
    fill(replay, copies(payloads, config.max_fragment_bytes), steps)
    return before, process.memory_info().rss
