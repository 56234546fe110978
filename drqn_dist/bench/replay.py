"""The replay: how small its frames are, and how fast it takes and gives them."""

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np

from drqn_dist.bench import BenchSettings, Figures, rate
from drqn_dist.bench.play import MAX_STEPS, copies, fill, play, unblocked
from drqn_dist.codec import decode_header
from drqn_dist.config import TrainConfig
from drqn_dist.envs.make import env_spec
from drqn_dist.interfaces import SHARD_STRIDE, Held
from replay_server.replay import Replay, make_replay


def bench(config: TrainConfig, settings: BenchSettings) -> dict[str, Any]:
    """One full replay in this process and thread, filled with copies of real play.

    A window drawn is a reference, as for a learner that has every fragment, and includes its priority sent back.

    Returns:
        pushes_per_s, windows_per_s, spread; bytes_per_frame (everything stored, per agent step), raw_bytes_per_frame;
        steps_per_push, env.
    """
    spec = env_spec(config.env)
    payloads = play(config, spec, settings.play_steps)
    max_bytes = config.replay.max_fragment_bytes
    figures = Figures()
    steps = sum(decode_header(payload, max_bytes).num_steps for payload in payloads)
    capacity = min(config.replay.capacity_steps, MAX_STEPS)
    bench_config = replace(config, replay=unblocked(config.replay, capacity))
    replay = make_replay(bench_config)
    supply = copies(payloads, max_bytes)
    fill(replay, supply, capacity)
    windows = config.learner.batch_windows
    held = Held(replay.sample([], Held(), 0).fresh.log, 0, SHARD_STRIDE)
    for _ in range(settings.repeats):
        pieces = next(supply)
        start = time.perf_counter()
        for piece in pieces:
            replay.push(piece)
        pushes = len(pieces) / (time.perf_counter() - start)
        drawn = rate(lambda: _draw(replay, held, windows), settings.seconds)
        figures.add(pushes_per_s=pushes, windows_per_s=drawn)

    return figures.result() | {
        "bytes_per_frame": sum(map(len, payloads)) / steps,
        "raw_bytes_per_frame": math.prod(spec.observation_shape) * np.dtype(spec.observation_dtype).itemsize,
        "steps_per_push": config.window.fragment,
        "env": config.env.id,
    }


def _draw(replay: Replay, held: Held, windows: int) -> int:
    draws = replay.sample([windows], held, fresh_limit=0).draws
    assert draws is not None
    replay.update_priorities(draws.ids, np.ones(windows))
    return windows
