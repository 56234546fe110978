"""Runs whose replay keeps a journal of episodes that join as an actor's do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from drqn_dist.codec import encode
from drqn_dist.experiments.run_folder import RunFolder, create_run
from drqn_dist.fragment import Fragment
from replay_server import make as replays
from replay_server.windows import owned_windows
from tests.runs import maze_config

SHAPE = (1, 4, 6)
IN_FLIGHT = 2


def make_run(folder: Path, **changes: Any) -> RunFolder:
    """A run of fragments of 8 steps, without overlap of windows, whose actors have at most two on their way."""
    sections: dict[str, Any] = {"actor": {"max_pushes_in_flight": IN_FLIGHT}, "replay": {"min_steps": 1}}
    sections = {name: values | changes.pop(name, {}) for name, values in sections.items()}
    sections["replay"] = {"samples_per_insert": 1e-6, "rate_tolerance_steps": 10**9} | sections["replay"]
    return create_run(maze_config(folder, **sections, **({"mode": "ray"} | changes)), [])


def fragments(
    run: RunFolder,
    steps: int,
    episode: int = 0,
    sequence_no: int = 0,
    ends: str = "terminated",
    dtype: str = "uint8",
    **ids: int,
) -> list[Fragment]:
    """An episode that ends as it says ("": not at all, then `steps` must be a whole number of fragments), cut.

    Rewards are 1 each. Observation k is random, but its first pixel is k.
    """
    shape = run.config.window
    rng = np.random.default_rng([episode, *ids.values()])
    observations = rng.integers(0, 255, (steps + 1, *SHAPE)).astype(dtype)
    observations[:, 0, 0, 0] = np.arange(steps + 1) % 256
    made = []
    for first in range(0, steps, shape.fragment):
        length = min(shape.fragment, steps - first)
        last = first + length == steps
        made.append(
            Fragment(
                observations=observations[first : first + length + 1],
                actions=np.arange(first, first + length) % 3,
                rewards=np.ones(length, np.float32),
                terminated=last and ends == "terminated",
                truncated=last and ends == "truncated",
                first_step=first,
                episode_id=episode,
                sequence_no=sequence_no + len(made),
                priorities=np.full(owned_windows(shape, length), 0.5, np.float32),
                **({"actor_id": 0, "env_id": 0, "weight_version": 0} | ids),
            )
        )
    return made


def stream(run: RunFolder, episodes: int, steps: int = 30, **ids: int) -> list[Fragment]:
    """Episodes of one environment; of 30 steps each has 4 fragments."""
    made: list[Fragment] = []
    for episode in range(episodes):
        made += fragments(run, steps, episode, len(made), **ids)
    return made


def write(run: RunFolder, pieces: list[Fragment], shard: int | None = None, snapshot: bool = True) -> Path:
    """Pushes fragments into a replay that keeps the run's journal; returns the journal's folder."""
    folder = run.path / "replay" / str(shard or 0)
    replay = replays.make_replay(run.config, shard)
    note = replay.begin(None, folder)
    assert "keeps no journal" not in note
    for piece in pieces:
        assert replay.push(encode(piece))
    if snapshot:
        replay.save()
    replay.stop()
    return folder
