from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from drqn_dist.config import EnvConfig
from drqn_dist.envs.cartpole import PositionOnlyCartPole
from drqn_dist.envs.make import env_spec, make_batch_env

ID = "drqn_dist/PositionOnlyCartPole-v0"
CART_LIMIT_M, POLE_LIMIT_RAD = 2.4, 12 * 2 * np.pi / 360


def test_gymnasium_checker_has_no_complaint() -> None:
    check_env(PositionOnlyCartPole(), skip_render_check=True)


def test_it_is_an_environment_like_any_other() -> None:
    spec = env_spec(EnvConfig(id=ID))
    assert (spec.observation_shape, spec.observation_dtype) == ((2,), "float32")
    assert (spec.num_actions, spec.frames_per_step) == (2, 1)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_cartpole_with_its_positions_scaled_and_its_velocities_gone(seed: int) -> None:
    whole, positions = gymnasium.make("CartPole-v1"), gymnasium.make(ID)
    actions = np.random.default_rng(seed).integers(0, 2, 600).tolist()
    (seen, _), (expected, _) = positions.reset(seed=seed), whole.reset(seed=seed)
    ended = False
    while not ended:
        np.testing.assert_allclose(seen, [expected[0] / CART_LIMIT_M, expected[2] / POLE_LIMIT_RAD], rtol=1e-6)
        assert seen.dtype == np.float32
        action = actions.pop()
        seen, reward, terminated, truncated, _ = positions.step(action)
        expected, *others = whole.step(action)
        assert (reward, terminated, truncated) == tuple(others[:3])
        ended = terminated or truncated
    assert np.abs(seen).max() > 1  # one of the two has passed its limit


def test_velocities_show_only_in_how_positions_change() -> None:
    slow, fast = PositionOnlyCartPole(), PositionOnlyCartPole()
    for env, speed in ((slow, 0.0), (fast, 2.0)):
        env.reset(seed=0)
        env.state = np.array([0.1, speed, 0.02, -speed])
    # Euler's method: the first step moves by the velocities before it.
    first = [env.step(0)[0].tolist() for env in (slow, fast)]
    assert first[0] == pytest.approx([0.1 / CART_LIMIT_M, 0.02 / POLE_LIMIT_RAD])
    assert first[1] == pytest.approx([(0.1 + 0.02 * 2) / CART_LIMIT_M, (0.02 - 0.02 * 2) / POLE_LIMIT_RAD])


def test_an_episode_is_truncated_after_500_steps() -> None:
    spec = gymnasium.spec(ID)
    assert spec.max_episode_steps == 500
    assert gymnasium.spec("CartPole-v1").max_episode_steps == 500


def test_it_can_be_stepped_as_a_batch() -> None:
    env = make_batch_env(EnvConfig(id=ID), num_envs=3)
    assert env.reset(seed=0).shape == (3, 2)
    assert env.step(np.zeros(3, np.int64)).rewards.tolist() == [1, 1, 1]
    env.close()
