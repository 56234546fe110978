from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from ale_py import Action, ALEInterface, LoggerMode, roms

from drqn_dist.config import EnvConfig
from drqn_dist.envs.atari import AtariBatch, AtariRender, LifeWatch, atari_ids
from drqn_dist.envs.make import env_spec, make_batch_env
from drqn_dist.errors import EnvError
from drqn_dist.interfaces import StepBatch

BREAKOUT = "ALE/Breakout-v5"


class SlowGame:
    """One game played frame by frame on the bare emulator, as DQN's preprocessing describes it."""

    def __init__(self, rom: str) -> None:
        ALEInterface.setLoggerMode(LoggerMode.Error)
        self.ale = ALEInterface()
        self.ale.setFloat("repeat_action_probability", 0.0)
        path = roms.get_rom_path(rom)
        assert path is not None
        self.ale.loadROM(path)
        self.actions = self.ale.getMinimalActionSet()

    def reset(self) -> npt.NDArray[np.uint8]:
        self.ale.reset_game()
        self.ale.act(Action.FIRE)
        return self.ale.getScreenGrayscale()

    def step(self, action: int) -> tuple[npt.NDArray[np.uint8], float, bool, bool]:
        """Observation, reward, life lost while the game goes on, game over."""
        lives, reward, screens = self.ale.lives(), 0.0, []
        for _ in range(4):
            reward += self.ale.act(self.actions[action])
            screens.append(self.ale.getScreenGrayscale())
            if self.ale.game_over():
                break
        over = self.ale.game_over()
        return np.max(screens[-2:], axis=0), reward, not over and 0 < self.ale.lives() < lives, over


@pytest.mark.parametrize("life_loss_ends_episode", [False, True])
@pytest.mark.parametrize(
    ("env_id", "rom", "steps"),
    [(BREAKOUT, "breakout", 400), ("ALE/SpaceInvaders-v5", "space_invaders", 600)],
)
def test_batch_equals_the_emulator_stepped_frame_by_frame(
    env_id: str, rom: str, steps: int, life_loss_ends_episode: bool
) -> None:
    config = EnvConfig(
        id=env_id, height_px=210, width_px=160, noop_max_steps=0, life_loss_ends_episode=life_loss_ends_episode
    )
    env, slow, rng = AtariBatch(config, num_envs=1), SlowGame(rom), np.random.default_rng(0)
    np.testing.assert_array_equal(env.reset(seed=0)[0, 0], slow.reset())
    games = lives_lost = 0
    score = slow_score = 0.0
    pending = False
    for _ in range(steps):
        action = int(rng.integers(env.spec.num_actions))
        batch = env.step(np.array([action]))
        if pending:
            observation, reward, life_lost, over = slow.reset(), 0.0, False, False
        else:
            observation, reward, life_lost, over = slow.step(action)
        assert batch.rewards[0] == reward
        assert batch.reset_pending[0] == over
        assert batch.terminated[0] == (over or (life_lost and life_loss_ends_episode))
        assert not batch.truncated[0]
        if not over:
            np.testing.assert_array_equal(batch.observations[0, 0], observation)
        pending = over
        games, lives_lost = games + over, lives_lost + life_lost
        score, slow_score = score + float(batch.rewards[0]), slow_score + reward
    assert games >= 1
    assert lives_lost >= 2
    assert score == slow_score > 0


def play(config: EnvConfig, num_envs: int, steps: int, seed: int = 0) -> list[StepBatch]:
    env, rng = make_batch_env(config, num_envs), np.random.default_rng(9)
    env.reset(seed)
    batches = [env.step(rng.integers(0, env.spec.num_actions, num_envs)) for _ in range(steps)]
    env.close()
    return batches


def stacked(batches: list[StepBatch], field: str) -> npt.NDArray[Any]:
    return np.stack([getattr(batch, field) for batch in batches])


def test_life_loss_option_loses_no_transition_and_no_score() -> None:
    whole = play(EnvConfig(id=BREAKOUT), num_envs=2, steps=260)
    cut = play(EnvConfig(id=BREAKOUT, life_loss_ends_episode=True), num_envs=2, steps=260)
    for field in ("observations", "rewards", "reset_pending"):
        np.testing.assert_array_equal(stacked(cut, field), stacked(whole, field))
    pending, terminated = stacked(cut, "reset_pending"), stacked(cut, "terminated")
    np.testing.assert_array_equal(stacked(whole, "terminated"), pending)
    assert (terminated >= pending).all()
    assert (terminated & ~pending).sum() > pending.sum() > 0


def test_lost_lives_are_told_from_lost_games_and_from_new_ones() -> None:
    watch = LifeWatch(np.array([3, 3, 1, 3], np.int32))

    def lost(lives: list[int], over: list[bool]) -> object:
        return watch.lost(np.array(lives, np.int32), np.array(over)).tolist()

    nobody = [False] * 4
    # Row 0 loses a life; row 1 wins one; row 2 loses its last one but runs on; row 3 is stopped by the frame limit.
    assert lost([2, 4, 0, 3], [False, False, False, True]) == [True, False, False, False]
    # Row 1 is stopped by the frame limit; row 2 ends; row 3 begins a new game with fewer lives.
    assert lost([2, 4, 0, 2], [False, True, True, False]) == nobody
    assert lost([2, 3, 3, 2], [False] * 4) == nobody
    assert lost([1, 2, 2, 1], [False] * 4) == [True] * 4
    watch = LifeWatch(np.array([0, 1, 1, 1], np.int32))
    assert lost([0, 1, 1, 1], [False] * 4) == nobody


@pytest.mark.parametrize("noop_max_steps", [0, 1, 4])
def test_games_start_with_up_to_that_many_no_ops(noop_max_steps: int) -> None:
    env = AtariBatch(EnvConfig(id="ALE/MsPacman-v5", noop_max_steps=noop_max_steps), num_envs=1)
    env.reset(seed=0)
    frames = {int(env._envs.reset()[1]["episode_frame_number"][0]) for _ in range(60)}
    assert {frame - min(frames) for frame in frames} == set(range(noop_max_steps + 1))


def test_observations_are_grey_images_of_the_size_asked_for() -> None:
    config = EnvConfig(id="ALE/MsPacman-v5", height_px=52, width_px=40, frame_skip=2)
    spec = env_spec(config)
    assert (spec.observation_shape, spec.observation_dtype) == ((1, 52, 40), "uint8")
    assert (spec.num_actions, spec.frames_per_step) == (9, 2)
    batch = play(config, num_envs=2, steps=1)[0]
    assert (batch.observations.shape, batch.observations.dtype) == ((2, 1, 52, 40), np.uint8)
    assert batch.rewards.dtype == np.float32


def test_full_action_set_has_eighteen_actions() -> None:
    assert env_spec(EnvConfig(id="ALE/Pong-v5")).num_actions == 6
    assert env_spec(EnvConfig(id="ALE/Pong-v5", full_action_set=True)).num_actions == 18


def test_rewards_are_not_clipped() -> None:
    rewards = stacked(play(EnvConfig(id="ALE/SpaceInvaders-v5"), num_envs=2, steps=100), "rewards")
    assert rewards.max() >= 5


def test_frame_limit_truncates_and_the_next_step_resets() -> None:
    batches = play(EnvConfig(id="ALE/Pong-v5", max_episode_frames=40), num_envs=2, steps=25)
    truncated = stacked(batches, "truncated")[:, 0]
    assert np.flatnonzero(truncated).tolist() == [40 // 4 - 1, 2 * 40 // 4]
    np.testing.assert_array_equal(stacked(batches, "reset_pending")[:, 0], truncated)
    assert not stacked(batches, "terminated").any()


def test_one_seed_plays_the_same_games_again_with_any_number_of_threads() -> None:
    config = EnvConfig(id=BREAKOUT, sticky_action_probability=0.25)
    runs = []
    for threads in (1, 2):
        env = make_batch_env(config, num_envs=2, num_threads=threads)
        env.reset(seed=99)
        for _ in range(2):  # a reset in mid-game forgets what was before
            env.step(np.zeros(2, np.int64))
        observations = [np.array(env.reset(seed=5))]
        observations += [env.step(np.full(2, t % 4)).observations for t in range(60)]
        runs.append(np.stack(observations))
    np.testing.assert_array_equal(runs[0], runs[1])


def test_rows_and_seeds_play_different_games() -> None:
    games = np.concatenate(
        [
            stacked(play(EnvConfig(sticky_action_probability=0.25), num_envs=2, steps=25, seed=seed), "observations")
            for seed in (0, 1)
        ],
        axis=1,
    )
    assert len({games[:, row].tobytes() for row in range(4)}) == 4


def test_action_out_of_range_is_refused_instead_of_waiting_for_ever() -> None:
    env = AtariBatch(EnvConfig(), num_envs=2)
    env.reset(seed=0)
    for actions in ([0, 6], [-1, 0]):
        with pytest.raises(ValueError, match=r"must lie in 0\.\.5"):
            env.step(np.array(actions))


@pytest.mark.parametrize(
    ("env_id", "hint"),
    [
        ("ALE/Pnog-v5", "did you mean ALE/Pong-v5"),
        ("ALE/ms_pacman-v5", "did you mean ALE/MsPacman-v5"),
        ("ALE/Pong-v4", "did you mean ALE/Pong-v5"),
        ("ALE/SpaceInvader-v5", "did you mean ALE/SpaceInvaders-v5"),
        ("ALE/Xyzzy123-v5", "for example ALE/Pong-v5"),
    ],
)
def test_unknown_game_suggests_near_ones(env_id: str, hint: str) -> None:
    with pytest.raises(EnvError) as caught:
        env_spec(EnvConfig(id=env_id))
    assert str(caught.value).startswith(f"unknown Atari game '{env_id}'; did you mean ")
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_keyword_arguments_are_refused() -> None:
    with pytest.raises(EnvError, match=r"env.kwargs \['difficulty'\] cannot be used with ALE/Pong-v5"):
        env_spec(EnvConfig(kwargs={"difficulty": 1}))


def test_every_game_that_gymnasium_lists_is_known() -> None:
    import gymnasium

    listed = {name for name, spec in gymnasium.registry.items() if str(spec.vector_entry_point).startswith("ale_py")}
    assert set(atari_ids()) == listed
    assert len(listed) > 100


def test_picture_shows_the_moment_that_was_observed() -> None:
    config = EnvConfig(id=BREAKOUT, height_px=210, width_px=160, sticky_action_probability=0.25)
    env, rng = AtariRender(config), np.random.default_rng(0)
    pictures, observations = [], [np.array(env.reset(seed=1))]
    pictures.append(env.render())
    for _ in range(120):
        observations.append(np.array(env.step(rng.integers(0, 4, 1)).observations))
        pictures.append(env.render())
    grey = np.stack(pictures) @ np.array([0.299, 0.587, 0.114])
    # Brightest of two frames per colour is not quite brightest of two greys: only where something moved.
    differs = np.abs(grey - np.stack(observations)[:, 0, 0]) > 1.5
    assert differs.mean(axis=(1, 2)).max() < 0.002
    assert pictures[0].shape == (210, 160, 3)
    assert pictures[0].dtype == np.uint8
    assert (pictures[0] != pictures[-1]).any()
