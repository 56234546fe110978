from __future__ import annotations

import inspect
import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import imageio_ffmpeg
import numpy as np
import numpy.typing as npt
import pytest
import torch

import drqn_dist
import tests.envs.fakes  # noqa: F401  registers drqn_test/*
from actors.evaluator import Evaluator
from drqn_dist.cli import EvalArgs, main
from drqn_dist.config import ActorConfig, EnvConfig, EvalConfig, NetworkConfig, TrainConfig
from drqn_dist.envs.make import env_spec
from drqn_dist.errors import CheckpointError, ConfigError, RunFolderError
from drqn_dist.experiments.evaluate import Agent, Policy, evaluate, load_agent
from drqn_dist.experiments.run_folder import create_run
from drqn_dist.experiments.video import write_video
from drqn_dist.interfaces import WeightSnapshot
from drqn_dist.network.q_network import NetworkInput, QNetwork
from drqn_dist.presets import preset
from drqn_dist.seeding import EVALUATION_SEED
from drqn_dist.training.train import train
from tests.oracles import unroll


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few updates on the maze; its return differs from episode to episode, because the agent explores."""
    config = preset("gridworld")
    root = tmp_path_factory.mktemp("runs")
    train(
        replace(
            config,
            mode="serial",
            total_steps=800,
            log_period_s=0.1,
            run_dir=str(root),
            network=NetworkConfig(torso="mlp", torso_units=8, core_units=8),
            replay=replace(config.replay, min_steps=300),
            actor=ActorConfig(envs_per_actor=4),
            eval=EvalConfig(period_updates=None, episodes=2, epsilon=0.8),
        )
    )
    (folder,) = root.iterdir()
    return folder


def _agent(env: EnvConfig, **network: Any) -> Agent:
    spec = env_spec(env)
    config = TrainConfig(env=env, network=NetworkConfig(torso_units=8, core_units=8, **network))
    return Agent(config, spec, QNetwork(config.network, spec, env.stack_frames), 0, "")


def test_the_result_describes_all_scores(run: Path) -> None:
    agent = load_agent(run)
    evaluator = Evaluator(agent.config, 30)
    weights = WeightSnapshot(agent.updates, agent.network.to_vector())
    scores = evaluator.evaluate(weights, seed=5).scores
    evaluator.close()
    assert len(set(scores)) > 1
    summary = json.loads((run / "summary.json").read_text())
    assert evaluate(run, episodes=30, seed=5) == {
        "mean_return": pytest.approx(statistics.fmean(scores)),
        "std_return": pytest.approx(statistics.pstdev(scores)),
        "median_return": statistics.median(scores),
        "episodes": 30,
        "scores": list(scores),
        "cut_short": 0,
        "env": "drqn_dist/GridWorld-v0",
        "weights_sha256": summary["weights_sha256"],
    }


def test_the_api_and_the_command_give_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = drqn_dist.evaluate(str(run), episodes=10, seed=3)
    main(["eval", str(run), "--episodes", "10", "--seed", "3", "--json"])
    assert json.loads(capsys.readouterr().out) == expected
    main(["eval", str(run), "--episodes", "10", "--seed", "3"])
    assert f"mean return {expected['mean_return']:.2f}" in capsys.readouterr().out


def test_the_api_plays_other_games_by_itself_than_those_that_chose_the_weights() -> None:
    assert inspect.signature(evaluate).parameters["seed"].default == EVALUATION_SEED
    assert EvalArgs(Path("run")).seed == EVALUATION_SEED > 1_000_000


def test_the_video_shows_one_whole_episode_at_game_speed(run: Path, tmp_path: Path) -> None:
    video = tmp_path / "episode.mp4"
    evaluate(run, episodes=1, video=video)
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(video)
    assert frames >= 2
    assert seconds == pytest.approx(frames / 8, abs=0.05)
    assert [path.name for path in tmp_path.iterdir()] == ["episode.mp4"]


def _pictures(height: int, width: int, count: int = 3) -> Iterator[npt.NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (210, 160, (160 * 3, 210 * 3)),
        (7, 9, (9 * 68, 7 * 68)),
        (481, 611, (612, 482)),
    ],
)
def test_pictures_are_enlarged_and_made_even_for_every_player(
    height: int, width: int, expected: tuple[int, int], tmp_path: Path
) -> None:
    write_video(tmp_path / "a.mp4", _pictures(height, width), 15.0)
    reader = imageio_ffmpeg.read_frames(tmp_path / "a.mp4")
    meta = next(reader)
    reader.close()
    assert meta["size"] == expected
    assert meta["codec"] == "h264"
    assert meta["pix_fmt"].startswith("yuv420p")
    assert meta["fps"] == 15.0


def test_a_video_that_cannot_be_written_is_a_clear_error_and_leaves_nothing(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"could not write .*missing/a\.mp4: .*No such file"):
        evaluate(run, episodes=1, video=tmp_path / "missing" / "a.mp4")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(RunFolderError, match="Is a directory"):
        write_video(tmp_path / "folder.mp4", _pictures(16, 16), 15.0)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.mp4"]


def test_a_video_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--video is .*a\.gif, but what is written is an MP4 file; give it a name"):
        write_video(tmp_path / "a.gif", _pictures(16, 16), 15.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_a_clear_error_and_leaves_what_was_there(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    video.write_bytes(b"older")
    (tmp_path / "a.mp4.tmp").symlink_to("/dev/full")
    with pytest.raises(RunFolderError, match="No space left on device"):
        write_video(video, _pictures(64, 64, 100), 15.0)
    assert video.read_bytes() == b"older"
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_an_interrupted_video_leaves_what_was_there(tmp_path: Path) -> None:
    def interrupted() -> Iterator[npt.NDArray[np.uint8]]:
        yield from _pictures(16, 16)
        raise KeyboardInterrupt

    video = tmp_path / "a.mp4"
    video.write_bytes(b"older")
    with pytest.raises(KeyboardInterrupt):
        write_video(video, interrupted(), 15.0)
    assert video.read_bytes() == b"older"
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_runs_that_cannot_be_evaluated_are_clear_errors(tmp_path: Path) -> None:
    fresh = create_run(replace(preset("gridworld"), run_dir=str(tmp_path)), []).path
    with pytest.raises(CheckpointError, match="holds no checkpoint yet"):
        evaluate(fresh, episodes=1)
    with pytest.raises(ConfigError, match="episodes is 0"):
        evaluate(fresh, episodes=0)
    with pytest.raises(RunFolderError, match="is no run folder"):
        drqn_dist.load_policy(tmp_path)


def test_a_policy_plays_in_a_loop_of_ones_own(run: Path) -> None:
    policy = drqn_dist.load_policy(run, epsilon=0.5, seed=1)
    env = gymnasium.make("drqn_dist/GridWorld-v0")
    for seed in range(2):
        observation, _ = env.reset(seed=seed)
        policy.reset()
        reward, over = 0.0, False
        while not over:
            action = policy.act(observation, reward)
            assert policy.q_values.shape == (4,)
            assert np.isfinite(policy.q_values).all()
            observation, step_reward, terminated, truncated, _ = env.step(action)
            reward, over = float(step_reward), terminated or truncated
    env.close()


@pytest.mark.parametrize("stack_frames", [1, 3])
@pytest.mark.parametrize("core", ["gru", "lstm", "none"])
def test_a_policys_q_values_equal_an_unroll_of_the_whole_episode(core: str, stack_frames: int) -> None:
    agent = _agent(EnvConfig(id="CartPole-v1", stack_frames=stack_frames), core=core, last_action_and_reward=True)
    policy = Policy(agent, epsilon=0.5, seed=2)
    rng, steps = np.random.default_rng(0), 12
    observations = rng.normal(size=(steps, 4)).astype(np.float32)
    rewards = rng.uniform(-1, 1, steps).astype(np.float32)
    policy.act(observations[-1])  # of another episode, to be forgotten
    policy.reset()
    actions, q_values = [], []
    for step in range(steps):
        actions.append(policy.act(observations[step], float(rewards[step - 1])))
        q_values.append(policy.q_values)

    stacked = [
        np.concatenate([observations[max(t - k, 0)] for k in reversed(range(stack_frames))]) for t in range(steps)
    ]
    inputs = NetworkInput(
        torch.from_numpy(np.stack(stacked))[None],
        torch.tensor([[-1, *actions[:-1]]]),
        torch.tensor([[0.0, *rewards[:-1]]]),
    )
    with torch.no_grad():
        expected, _ = unroll(agent.network, inputs, agent.network.initial_state(1))
    np.testing.assert_allclose(np.stack(q_values), expected[0].numpy(), atol=1e-5)
    assert len(set(actions)) == 2


def test_a_policy_remembers_until_it_is_reset() -> None:
    policy = Policy(_agent(EnvConfig(id="CartPole-v1")))
    assert np.isnan(policy.q_values).all()
    observation = np.array([0.1, -0.2, 0.3, 0.4])
    policy.act(observation)
    first = policy.q_values
    policy.act(observation)
    assert not np.array_equal(policy.q_values, first)
    policy.reset()
    policy.act(observation)
    np.testing.assert_array_equal(policy.q_values, first)


def test_a_policy_takes_raw_and_encoded_observations_and_names_the_environments_actions() -> None:
    env = EnvConfig(id="drqn_test/Echo-v0", kwargs={"observation": "discrete", "actions_start": 5})
    policy = Policy(_agent(env))
    assert 5 <= policy.act(3) < 8  # the space begins at 2, so 3 is its second observation
    raw = policy.q_values
    policy.reset()
    policy.act(np.eye(8, dtype=np.float32)[1])
    np.testing.assert_array_equal(policy.q_values, raw)


def test_an_observation_that_does_not_fit_is_refused() -> None:
    policy = Policy(_agent(EnvConfig(height_px=40, width_px=36), torso="small"))
    policy.act(np.zeros((40, 36), np.uint8))
    policy.act(np.zeros((1, 40, 36), np.uint8))
    with pytest.raises(
        ValueError, match=r"is uint8 \[210, 160, 3\], but this run takes uint8 \[1, 40, 36\], or \[40, 36\]"
    ):
        policy.act(np.zeros((210, 160, 3), np.uint8))
    with pytest.raises(ValueError, match=r"is float64 \[40, 36\]"):
        policy.act(np.zeros((40, 36)))
