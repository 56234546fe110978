"""Small runs in the maze, and looking at the processes that they start."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from drqn_dist.config import TrainConfig
from tests.tiny import tiny_config

SUMMARY_KEYS = {
    "agent_steps",
    "frames",
    "updates",
    "wall_s",
    "eval_mean_return",
    "eval_std_return",
    "eval_updates",
    "weights_sha256",
    "stopped_by",
}
"""What others build on."""


def maze_config(run_dir: Path, **changes: Any) -> TrainConfig:
    """Half a minute of a small maze at most: 2 environments, 8 samples per insert, no evaluations but the last."""
    defaults: dict[str, dict[str, Any]] = {
        "env": {"id": "drqn_dist/GridWorld-v0", "kwargs": {"size": 4}},
        "network": {"core_units": 16, "torso_units": 16},
        "learner": {"batch_windows": 8, "unroll_steps": 8, "n_step": 2, "publish_period_updates": 5},
        "replay": {"capacity_steps": 2_000, "min_steps": 200, "samples_per_insert": 8.0, "prioritized": True},
        "actor": {"fragment_steps": 8},
        "eval": {"period_updates": None, "episodes": 2},
    }
    top: dict[str, Any] = {"mode": "serial", "total_steps": 1_000, "log_period_s": 0.2, "run_dir": str(run_dir)}
    sections = {name: values | changes.pop(name, {}) for name, values in defaults.items()}
    return tiny_config(**sections, **(top | changes))


def role_processes(role: str = "") -> list[psutil.Process]:
    """The processes of a role (Replay, Learner, Actor, Evaluator; "" for all) that this process started, by Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = process.cmdline()
        except psutil.Error:
            continue
        if title and title[0].startswith(f"ray::{role}") and "Role" in title[0]:
            found.append(process)
    return found


def tells_metrics(host: str, port: int) -> bool:
    """Whether something there gives its metrics to whoever asks."""
    with suppress(OSError), socket.create_connection((host, port), timeout=2) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        return b" 200 " in connection.recv(100)
    return False


def until(condition: Callable[[], bool], what: str, seconds: float = 240.0) -> None:
    """Polls until the condition holds.

    Raises:
        AssertionError: it does not in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.05)
