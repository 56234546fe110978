"""Replays that keep a journal, and what they hold, for the tests of the files that it takes."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np

from drqn_dist.config import ReplayConfig
from replay_server.replay import Replay
from tests.replay_server.fragments import Piece, cut_episode
from tests.replay_server.test_replay import SHAPE

CONFIG = ReplayConfig(capacity_steps=1000, min_steps=1, samples_per_insert=1.0, journal_sync_s=60.0)

MADE: list[Replay] = []
"""By the test that runs; conftest.py stops them."""


def make_replay(config: ReplayConfig = CONFIG, seed: int = 0) -> Replay:
    replay = Replay(config, SHAPE, 4, 10**9, seed)
    MADE.append(replay)
    return replay


def pieces(count: int, actor: int = 0) -> list[Piece]:
    """Fragments of episodes of 30 steps: three of 8 steps and one of 6 each."""
    made: list[Piece] = []
    for episode in range(-(-count // 4)):
        rng = np.random.default_rng([actor, episode])
        made += cut_episode(SHAPE, 30, rng, (actor, 0, episode), 4 * episode)
    return made[:count]


def content(replay: Replay) -> tuple[list[Any], ...]:
    """All that a replay holds, by number."""
    store, sampler = replay._store, replay._sampler
    fragments = [(serial, store[serial].payload) for serial in range(store.oldest_serial, store.next_serial)]
    windows = [(store[serial].first_window, store[serial].drawable) for serial, _ in fragments]
    weights = sampler.weights()[-sum(store[serial].num_windows for serial, _ in fragments) :]
    return fragments, windows, weights.tolist(), sorted((key, seen.edges) for key, seen in replay._seen.items())


def fill(folder: Path, count: int, config: ReplayConfig = CONFIG) -> Replay:
    replay = make_replay(config)
    replay.begin(None, folder)
    for piece in pieces(count):
        replay.push(piece.payload)
    return killed(replay)


def killed(replay: Replay) -> Replay:
    """What a replay was when its process ended: the system gave its lock back, and nothing else was done."""
    if replay._owner is not None:
        replay._owner.close()
    return replay


class FullDisk:
    """Stands in for `os.writev`: takes so many more bytes, then none, then all again."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __call__(self, file: int, parts: list[bytes]) -> int:
        whole = b"".join(parts)
        part = whole[: self.room]
        if not part:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(part)
        return os.write(file, part)
