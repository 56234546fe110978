"""Batches for the learner's tests, from a played game."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from drqn_dist.config import TrainConfig
from drqn_dist.interfaces import EnvSpec, WindowSample
from learner.batch_loader import TensorBatch, to_device
from learner.window_reader import WindowReader
from tests.fakes import Script
from tests.play import all_windows, play
from tests.tiny import VECTOR, make_network

SCRIPTS = [[Script(13), Script(6, "truncated"), Script(2)], [Script(9, "truncated"), Script(3, "life"), Script(7)]]


def some_windows(config: TrainConfig, spec: EnvSpec = VECTOR) -> WindowSample:
    """A sample of every window of a short game: whole ones, short ones, terminated and truncated ones."""
    played = play(config, spec, SCRIPTS, steps=40, network=make_network(config, spec, seed=9))
    return all_windows(config, played.sink.payloads)[0]


def some_batches(config: TrainConfig, count: int, spec: EnvSpec = VECTOR, windows: int = 4) -> list[TensorBatch]:
    """Batches of windows drawn from that game, with unequal probabilities."""
    pool = some_windows(config, spec)
    rng = np.random.default_rng(1)
    reader = WindowReader(config, spec)
    batches = []
    for _ in range(count):
        rows = rng.choice(len(pool.ids), windows, replace=False)
        drawn = replace(
            pool,
            ids=pool.ids[rows],
            probabilities=rng.uniform(0.01, 0.2, windows),
            windows=tuple(pool.windows[row] for row in rows),
        )
        batches.append(to_device(reader.read(drawn, reader.empty(windows)), torch.device("cpu")))
    return batches


class FixedBatches:
    """A `BatchSource` that gives these batches, one after the other, over and over."""

    def __init__(self, batches: list[TensorBatch], first: int = 0) -> None:
        self._batches = batches
        self._next = first

    def next(self) -> TensorBatch:
        batch = self._batches[self._next % len(self._batches)]
        self._next += 1
        return batch

    def close(self) -> None:
        """Holds nothing."""
