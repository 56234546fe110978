from __future__ import annotations

import gymnasium
import numpy as np
import pytest

import tests.envs.fakes  # noqa: F401  registers drqn_test/*
from drqn_dist.config import EnvConfig
from drqn_dist.envs.make import describe_single, env_spec


@pytest.mark.parametrize("space", ["hwc", "chw", "hw", "int_vector", "discrete", "multi_discrete", "multi_binary"])
def test_a_raw_observation_is_encoded_as_the_batch_path_does(space: str) -> None:
    config = EnvConfig(id="drqn_test/Echo-v0", kwargs={"observation": space})
    single, spec = describe_single(config), env_spec(config)
    raw = np.asarray(gymnasium.make(config.id, disable_env_checker=True, **config.kwargs).observation_space.sample())
    assert raw.shape == single.raw_shape
    encoded = single.encode(raw[None])
    assert (encoded.shape, encoded.dtype) == ((1, *spec.observation_shape), spec.observation_dtype)


def test_actions_keep_the_environments_own_numbers() -> None:
    config = EnvConfig(id="drqn_test/Echo-v0", kwargs={"actions_start": 5})
    assert describe_single(config).actions.decode(np.array([0, 1])).tolist() == [5, 6]


def test_a_game_plays_at_the_consoles_speed_and_others_at_their_own() -> None:
    atari = describe_single(EnvConfig(id="ALE/Pong-v5", frame_skip=4, height_px=64, width_px=50))
    assert atari.steps_per_s == 60 / 4
    assert atari.raw_shape == (64, 50)
    assert atari.encode(np.zeros((1, 64, 50), np.uint8)).shape == (1, 1, 64, 50)
    assert describe_single(EnvConfig(id="drqn_dist/GridWorld-v0")).steps_per_s == 8
    assert describe_single(EnvConfig(id="drqn_test/Echo-v0")).steps_per_s == 30
