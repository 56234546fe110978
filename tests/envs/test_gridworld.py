from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from drqn_dist.config import EnvConfig
from drqn_dist.envs.gridworld import GridWorld
from drqn_dist.envs.make import env_spec, make_batch_env
from drqn_dist.errors import EnvError

UP, RIGHT, DOWN, LEFT = range(4)
ID = "drqn_dist/GridWorld-v0"


def seed_of_layout(which: int) -> int:
    """A seed under which the T-maze's goal is on the left (0) or on the right (1)."""
    env = GridWorld(size=2)
    niche_is_left = {seed: env.reset(seed=seed)[0][3] == 0 for seed in range(20)}
    return next(seed for seed, left in niche_is_left.items() if left == (which == 0))


@pytest.mark.parametrize("kwargs", [{}, {"maze": "cheese", "size": 5}, {"maze": "crossings"}, {"size": 2}], ids=str)
@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
def test_gymnasium_checker_has_no_complaint(kwargs: dict[str, Any], render_mode: str | None) -> None:
    check_env(gymnasium.make(ID, render_mode=render_mode, **kwargs).unwrapped)


def test_it_is_an_environment_like_any_other() -> None:
    spec = env_spec(EnvConfig(id=ID))
    assert (spec.observation_shape, spec.observation_dtype) == ((9,), "float32")
    assert (spec.num_actions, spec.frames_per_step) == (4, 1)


def test_walk_to_the_goal() -> None:
    env = GridWorld(size=2)
    env.reset(seed=seed_of_layout(0))
    steps = [env.step(action) for action in (UP, UP, UP, LEFT, LEFT)]
    assert [reward for _, reward, _, _, _ in steps] == [0, 0, 0, 0, 1]
    assert [terminated for _, _, terminated, _, _ in steps] == [False, False, False, False, True]
    assert not any(truncated for _, _, _, truncated, _ in steps)


def test_wrong_exit_ends_the_episode_without_reward() -> None:
    env = GridWorld(size=2)
    env.reset(seed=seed_of_layout(1))
    steps = [env.step(action) for action in (UP, UP, UP, LEFT, LEFT)]
    assert [reward for _, reward, _, _, _ in steps] == [0, 0, 0, 0, 0]
    assert steps[-1][2:4] == (True, False)


def test_step_into_a_wall_stays_in_place() -> None:
    env = GridWorld(size=2)
    first, _ = env.reset(seed=0)
    observation, reward, terminated, truncated, _ = env.step(DOWN)
    np.testing.assert_array_equal(observation, first)
    assert (reward, terminated, truncated) == (0.0, False, False)


def test_time_limit_truncates() -> None:
    env = GridWorld(time_limit_steps=3)
    for seed in (0, 1):
        env.reset(seed=seed)
        assert [env.step(DOWN)[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]


def test_goal_at_the_last_moment_is_not_a_truncation() -> None:
    env = GridWorld(size=2, time_limit_steps=5)
    env.reset(seed=seed_of_layout(0))
    assert [env.step(action)[2:4] for action in (UP, UP, UP, LEFT, LEFT)][-1] == (True, False)


def test_both_signs_are_drawn_equally_often_and_repeatably() -> None:
    env = make_batch_env(EnvConfig(id=ID), num_envs=400)
    first = np.array(env.reset(seed=0))
    # Standard error of the share of 400 fair coins is 0.025.
    assert (first[:, 3] == 0).mean() == pytest.approx(0.5, abs=0.1)
    np.testing.assert_array_equal(env.reset(seed=0), first)


def test_picture_shows_the_agent_and_brightens_what_it_sees() -> None:
    env = GridWorld(size=2, render_mode="rgb_array")
    env.reset(seed=seed_of_layout(0))
    picture = env.render()
    assert (picture.shape, picture.dtype) == ((6 * 16, 7 * 16, 3), np.uint8)
    cells = picture[8::16, 8::16].astype(int)
    red, _, blue = cells[4, 3]
    assert blue > 2 * red
    seen, unseen = cells[3, 3].sum(), cells[2, 3].sum()
    assert seen > 1.5 * unseen
    goal = cells[1, 1]
    assert goal[1] > 1.5 * goal[0]


def test_without_render_mode_nothing_is_drawn() -> None:
    env = GridWorld()
    env.reset(seed=0)
    assert env.render() is None


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(EnvError, match="render_mode is 'human'"):
        GridWorld(render_mode="human")
    with pytest.raises(EnvError, match="drqn_dist/GridWorld-v0: unknown maze 'labyrinth'; choose one of tmaze"):
        env_spec(EnvConfig(id=ID, kwargs={"maze": "labyrinth"}))
