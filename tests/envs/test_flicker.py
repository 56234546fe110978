from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from drqn_dist.config import EnvConfig
from drqn_dist.envs.flicker import Flicker
from drqn_dist.envs.make import env_spec, make_batch_env
from drqn_dist.errors import EnvError
from drqn_dist.interfaces import EnvSpec, StepBatch


class Counting:
    """Images filled with 1, 2, 3, …; every fourth step ends all rows' episodes. Hands out its own buffer."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.spec = EnvSpec((1, 3, 2), "uint8", num_actions=2, frames_per_step=4)
        self.buffer = np.zeros((num_envs, 1, 3, 2), np.uint8)
        self.closed = False

    def reset(self, seed: int) -> npt.NDArray[np.uint8]:
        self.buffer[:] = 1
        return self.buffer

    def step(self, actions: npt.NDArray[np.int64]) -> StepBatch:
        self.buffer += 1
        done = np.full(self.num_envs, self.buffer[0, 0, 0, 0] % 4 == 0)
        return StepBatch(self.buffer, actions.astype(np.float32), done, ~done, done)

    def close(self) -> None:
        self.closed = True


def rollout(env: Flicker, steps: int, seed: int) -> npt.NDArray[np.uint8]:
    actions = np.zeros(env.num_envs, np.int64)
    return np.array([env.reset(seed).copy()] + [env.step(actions).observations.copy() for _ in range(steps)])


def test_each_observation_is_blanked_whole_or_left_alone() -> None:
    observations = rollout(Flicker(Counting(4), 0.5), steps=99, seed=0)
    for t, batch in enumerate(observations):
        for image in batch:
            assert (image == 0).all() or (image == 1 + t).all()


@pytest.mark.parametrize("probability", [0.2, 0.5, 0.9])
def test_blanks_have_the_probability_asked_for_independently_per_row_and_step(probability: float) -> None:
    blank = rollout(Flicker(Counting(50), probability), steps=199, seed=0).max(axis=(2, 3, 4)) == 0
    # Standard error of a share over 200 × 50 coins is at most 0.005; of pairs, the same.
    assert blank.mean() == pytest.approx(probability, abs=0.025)
    assert (blank[1:] & blank[:-1]).mean() == pytest.approx(probability**2, abs=0.025)
    assert (blank[:, 1:] & blank[:, :-1]).mean() == pytest.approx(probability**2, abs=0.025)


def test_first_and_final_observations_are_blanked_too() -> None:
    env = Flicker(Counting(64), 0.5)
    observations = rollout(env, steps=3, seed=0)
    for first_or_final in (observations[0], observations[3]):
        assert 10 < (first_or_final.max(axis=(1, 2, 3)) == 0).sum() < 54


def test_probabilities_zero_and_one_are_exact() -> None:
    assert rollout(Flicker(Counting(3), 1.0), steps=50, seed=0).max() == 0
    assert rollout(Flicker(Counting(3), 0.0), steps=50, seed=0).min() == 1


def test_blanks_repeat_with_both_seeds_and_differ_without() -> None:
    reference = rollout(Flicker(Counting(4), 0.5, seed=1), steps=50, seed=2)
    again = Flicker(Counting(4), 0.5, seed=1)
    np.testing.assert_array_equal(rollout(again, steps=50, seed=2), reference)
    np.testing.assert_array_equal(rollout(again, steps=50, seed=2), reference)
    assert (rollout(Flicker(Counting(4), 0.5, seed=1), steps=50, seed=3) != reference).any()
    assert (rollout(Flicker(Counting(4), 0.5, seed=9), steps=50, seed=2) != reference).any()


def test_everything_but_the_observations_passes_through_and_the_inner_buffer_stays_whole() -> None:
    inner = Counting(2)
    env = Flicker(inner, 1.0)
    env.reset(seed=0)
    batch = env.step(np.array([5, 7]))
    assert batch.rewards.tolist() == [5, 7]
    assert (batch.terminated.tolist(), batch.truncated.tolist()) == ([False, False], [True, True])
    assert batch.reset_pending.tolist() == [False, False]
    assert inner.buffer.min() == 2
    env.close()
    assert inner.closed


def test_vectors_are_refused() -> None:
    config = EnvConfig(id="CartPole-v1", flicker_probability=0.5)
    for make in (env_spec, lambda config: make_batch_env(config, 2)):
        with pytest.raises(EnvError, match=r"flicker_probability 0.5 needs image observations .* vectors \[4\]"):
            make(config)


def test_configuration_turns_it_on_for_games() -> None:
    env = make_batch_env(EnvConfig(flicker_probability=0.5), num_envs=4, seed=1)
    env.reset(seed=0)
    blank = [env.step(np.zeros(4, np.int64)).observations.max(axis=(1, 2, 3)) == 0 for _ in range(25)]
    assert 30 <= np.sum(blank) <= 70
    env.close()
