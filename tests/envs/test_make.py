from __future__ import annotations

import numpy as np
import pytest

from drqn_dist.config import EnvConfig
from drqn_dist.envs.make import env_spec, make_batch_env, make_render_env


@pytest.mark.parametrize(
    ("config", "steps", "picture_shape"),
    [
        (
            EnvConfig(sticky_action_probability=0.25, flicker_probability=0.5, max_episode_frames=160),
            100,
            (210, 160, 3),
        ),
        (EnvConfig(id="ALE/Breakout-v5", life_loss_ends_episode=True, frame_skip=3), 100, (210, 160, 3)),
        (EnvConfig(id="drqn_dist/GridWorld-v0", kwargs={"size": 2, "time_limit_steps": 9}), 60, (6 * 16, 7 * 16, 3)),
    ],
    ids=["sticky-flicker", "life-loss", "gridworld"],
)
def test_watched_environment_plays_exactly_the_game_of_the_batch(
    config: EnvConfig, steps: int, picture_shape: tuple[int, int, int]
) -> None:
    watched, plain, rng = make_render_env(config, seed=4), make_batch_env(config, 1, seed=4), np.random.default_rng(0)
    assert watched.spec == plain.spec == env_spec(config)
    np.testing.assert_array_equal(watched.reset(seed=6), plain.reset(seed=6))
    ends = 0
    for _ in range(steps):
        actions = rng.integers(0, plain.spec.num_actions, 1)
        seen, expected = watched.step(actions), plain.step(actions)
        for field in ("observations", "rewards", "terminated", "truncated", "reset_pending"):
            np.testing.assert_array_equal(getattr(seen, field), getattr(expected, field))
        ends += int(seen.terminated[0] or seen.truncated[0])
        picture = watched.render()
        assert (picture.shape, picture.dtype) == (picture_shape, np.uint8)
    assert ends >= 1
    watched.close()
    plain.close()


def test_picture_does_not_flicker() -> None:
    env = make_render_env(EnvConfig(flicker_probability=1.0))
    assert np.max(env.reset(seed=0)) == 0
    assert env.render().max() > 100
