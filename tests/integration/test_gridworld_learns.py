"""Memory is learnt where memory is needed: the short version of the run that the README shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from drqn_dist.config import TrainConfig
from drqn_dist.envs.mazes import make_maze
from drqn_dist.experiments.evaluate import evaluate
from drqn_dist.presets import preset
from drqn_dist.training.train import train
from tests.envs.optimal import optimal_return

SIZE = 4


def _config(run_dir: Path) -> TrainConfig:
    config = preset("gridworld")
    return replace(
        config,
        mode="serial",
        minutes=None,
        run_dir=str(run_dir),
        env=replace(config.env, kwargs={"size": SIZE}),
        eval=replace(config.eval, period_updates=250, episodes=100),
    )


def _share_of_optimum(run_dir: Path) -> float:
    (folder,) = run_dir.iterdir()
    return evaluate(folder, episodes=200, seed=7)["mean_return"] / optimal_return(*make_maze("tmaze", SIZE))


@pytest.mark.slow
def test_a_recurrent_agent_solves_the_maze(tmp_path: Path) -> None:
    train(replace(_config(tmp_path), total_steps=60_000, stop_at_return=0.99))
    assert _share_of_optimum(tmp_path) >= 0.95


@pytest.mark.slow
def test_a_memoryless_agent_cannot(tmp_path: Path) -> None:
    config = _config(tmp_path)
    train(replace(config, total_steps=15_000, stop_at_return=None, network=replace(config.network, core="none")))
    assert _share_of_optimum(tmp_path) <= 0.70
