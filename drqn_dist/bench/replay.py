"""The replay: how small its frames are, and how fast it takes and gives them."""

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from drqn_dist.bench import BenchSettings, Figures, rate
from drqn_dist.bench.play import MAX_STEPS, copies, fill, play, unblocked
from drqn_dist.codec import decode_header
from drqn_dist.config import TrainConfig
from drqn_dist.envs.make import env_spec
from drqn_dist.interfaces import SHARD_STRIDE, Held
from replay_server.make import make_replay
from replay_server.replay import Replay


def bench(config: TrainConfig, settings: BenchSettings) -> dict[str, Any]:
    """One full replay in this process and thread, filled with copies of real play.

    A window drawn is a reference, as for a learner that has every fragment, and includes its priority sent back.

    Returns:
        pushes_per_s, journaled_pushes_per_s (the same with a journal in the present folder), windows_per_s, spread;
        restart_s_per_million_steps (a full replay read back from its journal); bytes_per_frame (everything stored, per
        agent step), raw_bytes_per_frame; steps_per_push, env.
    """
    spec = env_spec(config.env)
    payloads = play(config, spec, settings.play_steps)
    max_bytes = config.replay.max_fragment_bytes
    figures = Figures()
    steps = sum(decode_header(payload, max_bytes).num_steps for payload in payloads)
    capacity = min(config.replay.capacity_steps, MAX_STEPS)
    bench_config = replace(config, replay=unblocked(config.replay, capacity))
    windows = config.learner.batch_windows
    with tempfile.TemporaryDirectory(dir=".") as folder:
        journal = Path(folder, "journal")
        replay, journaled = make_replay(bench_config), make_replay(bench_config)
        journaled.begin(None, journal)
        supply = copies(payloads, max_bytes)
        for one in (replay, journaled):
            fill(one, supply, capacity)
        held = Held(replay.sample([], Held(), 0).fresh.log, 0, SHARD_STRIDE)
        for _ in range(settings.repeats):
            pieces = next(supply)
            figures.add(
                pushes_per_s=_pushed(replay, pieces),
                journaled_pushes_per_s=_pushed(journaled, pieces),
                windows_per_s=rate(partial(_draw, replay, held, windows), settings.seconds),
            )
        state = journaled.save()
        journaled.stop()
        start = time.perf_counter()
        again = make_replay(bench_config)
        again.begin(state, journal)
        restart_s = time.perf_counter() - start
        again.stop()

    return figures.result() | {
        "restart_s_per_million_steps": restart_s * 1e6 / again.stats().stored_steps,
        "bytes_per_frame": sum(map(len, payloads)) / steps,
        "raw_bytes_per_frame": math.prod(spec.observation_shape) * np.dtype(spec.observation_dtype).itemsize,
        "steps_per_push": config.window.fragment,
        "env": config.env.id,
    }


def _pushed(replay: Replay, pieces: Sequence[bytes]) -> float:
    """Pushes a second."""
    start = time.perf_counter()
    for piece in pieces:
        replay.push(piece)
    return len(pieces) / (time.perf_counter() - start)


def _draw(replay: Replay, held: Held, windows: int) -> int:
    draws = replay.sample([windows], held, fresh_limit=0).draws
    assert draws is not None
    replay.update_priorities(draws.ids, np.ones(windows))
    return windows
