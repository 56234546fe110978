"""A batch that is restored goes on as the one that was saved."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

import tests.envs.fakes  # noqa: F401  registers drqn_test/*
from drqn_dist.config import EnvConfig
from drqn_dist.envs.atari import AtariBatch, AtariRender
from drqn_dist.envs.flicker import Flicker
from drqn_dist.envs.gym_batch import GymBatch
from drqn_dist.envs.make import make_batch_env
from drqn_dist.errors import CheckpointError, EnvNotRestoredError
from drqn_dist.interfaces import BatchEnv, StepBatch
from drqn_dist.state import State
from tests.restoring import assert_same, through_a_file

GRIDWORLD = EnvConfig(id="drqn_dist/GridWorld-v0", kwargs={"time_limit_steps": 7})
CARTPOLE = EnvConfig(id="drqn_dist/PositionOnlyCartPole-v0")
SHORT = {"height_px": 36, "width_px": 36}


def check_goes_on(
    make: Callable[[], BatchEnv], steps: int, moments: Callable[[int, StepBatch], bool], seed: int = 3
) -> int:
    """Plays at random; at each of the moments saves, and at the end compares what came after with batches restored.

    Returns:
        Moments at which some rows were over, and others not.
    """
    env, rng = make(), np.random.default_rng(0)
    actions = rng.integers(0, env.spec.num_actions, (steps, env.num_envs))
    env.reset(seed)
    batches: list[StepBatch] = []
    saved: dict[int, State] = {}
    for t in range(steps):
        batch = env.step(actions[t])
        batches.append(StepBatch(*(getattr(batch, name).copy() for name in StepBatch.__annotations__)))
        if moments(t, batch):
            saved[t] = env.get_state()
    end, mixed = env.get_state(), 0
    assert saved
    for t, state in saved.items():
        again = make()
        again.reset(seed + 1)
        for _ in range(t % 3):  # what it was before is of no account
            again.step(actions[0])
        again.set_state(through_a_file(state))
        assert_same(again.get_state(), state)
        for action, expected in zip(actions[t + 1 :], batches[t + 1 :], strict=True):
            batch = again.step(action)
            for name in StepBatch.__annotations__:
                np.testing.assert_array_equal(getattr(batch, name), getattr(expected, name), err_msg=name)
        assert_same(again.get_state(), end)
        again.close()
        mixed += 0 < batches[t].reset_pending.sum() < env.num_envs
    env.close()
    return mixed


@pytest.mark.parametrize(
    ("config", "threads"),
    [
        (GRIDWORLD, 1),
        (CARTPOLE, 1),
        (EnvConfig(id="CartPole-v1"), 3),
        (EnvConfig(id="FrozenLake-v1"), 1),
        (EnvConfig(id="drqn_test/Seeded-v0", kwargs={"observation": "hwc"}), 2),
        (EnvConfig(id="drqn_test/Seeded-v0", kwargs={"observation": "dict"}), 1),
        (EnvConfig(id="drqn_test/Seeded-v0", kwargs={"observation": "hw"}, flicker_probability=0.5), 1),
    ],
    ids=["gridworld", "masked-cartpole", "threads", "frozenlake", "image", "dict", "flicker"],
)
def test_a_gymnasium_batch_goes_on_from_any_step(config: EnvConfig, threads: int) -> None:
    mixed = check_goes_on(lambda: make_batch_env(config, 4, threads, seed=1), 90, lambda t, _: t % 4 == 0 or t < 20)
    assert mixed >= (config != GRIDWORLD)  # whose time limit ends all of them together


def test_an_action_of_several_numbers_is_played_again() -> None:
    check_goes_on(lambda: make_batch_env(EnvConfig(id="drqn_test/SeededPairs-v0"), 2), 20, lambda t, _: t % 3 == 0)


class Moments:
    """The first steps of each kind: some rows over and others not, the step after, a lost life, any other."""

    def __init__(self, first: int, most: int = 1) -> None:
        self._first, self._most = first, most
        self.found: dict[str, int] = {}
        self._pending: npt.NDArray[np.bool_] | bool = False

    def __call__(self, t: int, batch: StepBatch) -> bool:
        ended = batch.terminated | batch.truncated
        kinds = {
            "over": batch.reset_pending.any() and not batch.reset_pending.all(),
            "reset": np.any(self._pending),
            "life": (ended & ~batch.reset_pending).any(),
            "other": not ended.any(),
        }
        self._pending = batch.reset_pending
        due = [kind for kind, here in kinds.items() if here and self.found.get(kind, 0) < self._most]
        if t < self._first or not due:
            return False
        self.found |= {kind: self.found.get(kind, 0) + 1 for kind in due}
        return True


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        (EnvConfig(id="ALE/Pong-v5", **SHORT), 1150),
        (EnvConfig(id="ALE/Breakout-v5", life_loss_ends_episode=True, flicker_probability=0.5, **SHORT), 420),
        (EnvConfig(id="ALE/Breakout-v5", sticky_action_probability=0.25, **SHORT), 420),
    ],
    ids=["pong", "lives-and-flicker", "sticky"],
)
def test_games_go_on_from_awkward_moments(config: EnvConfig, steps: int) -> None:
    moments = Moments(first=steps // 2)
    assert check_goes_on(lambda: make_batch_env(config, 3, seed=1), steps, moments) >= 1
    assert moments.found.keys() >= {"over", "reset", "other"} | ({"life"} if config.life_loss_ends_episode else set())


@pytest.mark.parametrize("game", ["Surround", "YarsRevenge"])
def test_games_that_keep_something_from_those_before_go_on_too(game: str) -> None:
    config = EnvConfig(id=f"ALE/{game}-v5", max_episode_frames=160, **SHORT)
    check_goes_on(lambda: make_batch_env(config, 2), 180, lambda t, _: t in (110, 140))


def test_a_row_that_has_just_been_reset_is_not_over_whatever_it_played_before() -> None:
    env = AtariBatch(EnvConfig(max_episode_frames=40), 2)
    env.reset(0)
    _, over = env._replay([np.zeros(0, np.uint8), np.zeros(40 // 4, np.uint8)])
    assert over.tolist() == [False, True]


@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_games_that_begin_with_new_seeds_go_on_too(sticky: float) -> None:
    config = EnvConfig(id="ALE/Breakout-v5", sticky_action_probability=sticky, **SHORT)
    moments = Moments(first=200)
    assert check_goes_on(lambda: AtariBatch(config, 3, seed_period_steps=100), 420, moments) >= 1
    assert moments.found.keys() >= {"over", "reset", "other"}


def test_a_new_seed_comes_with_the_first_game_after_the_period_and_lives_begin_anew() -> None:
    config = EnvConfig(id="ALE/Breakout-v5", max_episode_frames=120, life_loss_ends_episode=True, **SHORT)
    env = AtariBatch(config, 2, seed_period_steps=70)
    env.reset(0)
    first = env.get_state().arrays["now/seeds"]
    seeds, resets, life_lost = [], [], []
    for t in range(150):
        batch = env.step(np.array([1, 1 + t % 2]))
        now = env.get_state().arrays
        seeds.append(int(now["now/seeds"][0]))
        resets.append(bool(batch.reset_pending[0]))
        life_lost.append(bool((batch.terminated & ~batch.reset_pending).any()))
    changes = [t for t in range(1, 150) if seeds[t] != seeds[t - 1]]
    assert seeds[0] == first[0]
    assert all(resets[t - 1] for t in changes)
    ends = [t for t in range(150) if resets[t]]
    assert changes == [next(t for t in ends if t >= 70 - 1) + 1, *changes[1:]]
    assert sum(life_lost) < 20
    env.close()


def test_a_watched_game_shows_its_picture_again_also_after_a_new_seed() -> None:
    config = EnvConfig(id="ALE/Breakout-v5", max_episode_frames=120, sticky_action_probability=0.25)
    env, again = AtariRender(config, seed_period_steps=40), AtariRender(config, seed_period_steps=40)
    plain = AtariBatch(config, 1, seed_period_steps=40)
    env.reset(0), again.reset(1), plain.reset(0)
    rng = np.random.default_rng(0)
    for t in range(110):
        actions = rng.integers(0, 4, 1)
        np.testing.assert_array_equal(env.step(actions).observations, plain.step(actions).observations)
        if t == 75:
            again.set_state(env.get_state())
        if t > 75:
            again.step(actions)
        if t >= 75:
            np.testing.assert_array_equal(again.render(), env.render())
    for one in (env, again, plain):
        one.close()


@pytest.mark.parametrize("rom", ["Pong", "Breakout", "Freeway", "MsPacman", "Seaquest", "SpaceInvaders"])
def test_without_sticky_actions_a_game_does_not_depend_on_what_was_played_before(rom: str) -> None:
    """What lets a state leave out all games but the present one; for the games that it is not true of, see `atari`."""
    env = AtariBatch(EnvConfig(id=f"ALE/{rom}-v5"), 2)
    assert env._forgets
    rng, both, second = np.random.default_rng(0), np.array([True, True]), np.array([False, True])
    env.reset(0)
    env._begin(both, np.array([5, 5]))
    steps = [env.step(rng.integers(0, env.spec.num_actions, 2)) for _ in range(300)]
    resets = sum(bool(step.reset_pending[0]) for step in steps[:-1])
    env._begin(second, np.array([5, 5]))
    for _ in range(resets):
        env._begin(second)
    observations, _ = env._begin(both)  # after as many resets: row 0 has played, and row 1 never took a step
    for _ in range(300):
        np.testing.assert_array_equal(observations[0], observations[1])
        step = env._step(np.repeat(rng.integers(0, env.spec.num_actions, 1), 2))
        observations = step.observations
        assert step.rewards[0] == step.rewards[1]
    env.close()


@pytest.mark.parametrize(
    ("kind", "steps"), [("shown", 3), ("shorter", 3), ("raises", 3), ("endless", 4), ("blind", 3), ("blind", 4)]
)
def test_an_environment_that_does_not_come_back_is_noticed_and_can_begin_anew(kind: str, steps: int) -> None:
    # The first game of an object is replayed in another object's second one.
    config = EnvConfig(id="drqn_test/Unrepeatable-v0", kwargs={"kind": kind, "since": 2})
    env, again = GymBatch(config, 3), GymBatch(config, 3)
    env.reset(0), again.reset(0)
    forward = np.ones(3, np.int64)
    for _ in range(steps):
        env.step(forward)
    with pytest.raises(EnvNotRestoredError, match=r"Unrepeatable-v0 did not .* rows \[0, 1, 2\] of 3 differ"):
        again.set_state(env.get_state())
    first = again.reset(0)
    assert again.step(forward).observations.tolist() == (first + (kind != "blind")).tolist()


def test_one_row_that_does_not_come_back_is_named() -> None:
    env = GymBatch(CARTPOLE, 3)
    env.reset(0)
    state = env.get_state()
    state.arrays["now/observations"][1, 0] += 1
    with pytest.raises(EnvNotRestoredError, match=r"rows \[1\] of 3 differ"):
        env.set_state(state)


def test_a_state_of_another_size_is_refused() -> None:
    for make in (lambda n: GymBatch(CARTPOLE, n), lambda n: AtariBatch(EnvConfig(**SHORT), n)):
        one, two = make(1), make(2)
        one.reset(0), two.reset(0)
        with pytest.raises(CheckpointError, match="belongs to other settings"):
            two.set_state(one.get_state())


def test_a_state_shares_no_memory_with_its_environment() -> None:
    env = Flicker(AtariBatch(EnvConfig(**SHORT), 2))
    env.reset(0)
    state = env.get_state()
    before = through_a_file(state)
    for _ in range(5):
        env.step(np.array([2, 3]))
    assert_same(state, before)
    env.close()
