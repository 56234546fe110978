from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pytest

from drqn_dist.config import EnvConfig
from drqn_dist.envs.gym_batch import GymBatch
from drqn_dist.envs.make import env_spec, make_batch_env
from drqn_dist.errors import EnvError, EnvFailedError
from drqn_dist.seeding import row_seeds

ECHO = "tests.envs.fakes:drqn_test/Echo-v0"


def refusal(config: EnvConfig) -> str:
    with pytest.raises(EnvError) as caught:
        make_batch_env(config, num_envs=2)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("num_envs", "threads"), [(3, 1), (5, 2), (3, 8)])
def test_batch_equals_environments_stepped_one_by_one(num_envs: int, threads: int) -> None:
    rng = np.random.default_rng(0)
    batch_env = make_batch_env(EnvConfig(id="CartPole-v1"), num_envs, threads)
    singles = [gymnasium.make("CartPole-v1") for _ in range(num_envs)]
    seeds = row_seeds(5, num_envs).tolist()
    later_seeds = [np.random.default_rng([seed, 1]) for seed in seeds]
    expected = [env.reset(seed=seed)[0] for env, seed in zip(singles, seeds, strict=True)]
    np.testing.assert_array_equal(batch_env.reset(seed=5), expected)
    pending, episodes = [False] * num_envs, 0
    for _ in range(200):
        actions = rng.integers(0, 2, num_envs)
        batch = batch_env.step(actions)
        assert batch.observations.dtype == batch.rewards.dtype == np.float32
        for row, env in enumerate(singles):
            if pending[row]:
                observation, _ = env.reset(seed=int(later_seeds[row].integers(2**31)))
                reward, terminated, truncated = 0.0, False, False
            else:
                observation, reward, terminated, truncated, _ = env.step(int(actions[row]))  # type: ignore[assignment]
            np.testing.assert_array_equal(batch.observations[row], observation)
            assert batch.rewards[row] == reward
            assert (batch.terminated[row], batch.truncated[row]) == (terminated, truncated)
            pending[row] = terminated or truncated
            assert batch.reset_pending[row] == pending[row]
            episodes += pending[row]
    assert episodes > 10
    batch_env.close()


@pytest.mark.parametrize(
    ("observation", "shape", "dtype"),
    [
        ("hwc", (3, 6, 5), "uint8"),
        ("chw", (3, 6, 5), "uint8"),
        ("hw", (1, 6, 5), "uint8"),
        ("int_vector", (4,), "float32"),
        ("double_vector", (4,), "float32"),
        ("discrete", (8,), "float32"),
        ("multi_discrete", (5,), "float32"),
        ("multi_binary", (3,), "float32"),
    ],
)
def test_spec_tells_what_every_step_yields(observation: str, shape: tuple[int, ...], dtype: str) -> None:
    config = EnvConfig(id=ECHO, kwargs={"observation": observation})
    spec = env_spec(config)
    assert (spec.observation_shape, spec.observation_dtype) == (shape, dtype)
    assert (spec.num_actions, spec.frames_per_step) == (3, 1)
    env = make_batch_env(config, num_envs=2)
    for observations in (env.reset(seed=0), env.step(np.array([0, 2])).observations):
        assert (observations.shape, observations.dtype) == ((2, *shape), dtype)


def test_actions_that_do_not_start_at_zero_are_shifted() -> None:
    env = make_batch_env(EnvConfig(id=ECHO, kwargs={"actions_start": -5}), num_envs=3)
    env.reset(seed=0)
    assert env.step(np.array([0, 1, 2])).rewards.tolist() == [-5, -5 + 1, -5 + 2]


def test_step_after_an_end_resets_without_reward() -> None:
    env = make_batch_env(EnvConfig(id=ECHO), num_envs=1)
    env.reset(seed=0)
    steps = [env.step(np.array([2])) for _ in range(6)]
    assert [float(s.rewards[0]) for s in steps] == [2, 2, 2, 2, 0, 2]
    assert [bool(s.reset_pending[0]) for s in steps] == [False, False, False, True, False, False]


def test_truncation_is_told_from_termination_and_resets_as_well() -> None:
    env = make_batch_env(EnvConfig(id="drqn_dist/GridWorld-v0", kwargs={"time_limit_steps": 2}), num_envs=1)
    env.reset(seed=0)
    into_the_wall = np.array([2])
    steps = [env.step(into_the_wall) for _ in range(5)]
    assert [bool(s.truncated[0]) for s in steps] == [False, True, False, False, True]
    assert [bool(s.reset_pending[0]) for s in steps] == [False, True, False, False, True]
    assert not any(s.terminated[0] for s in steps)


def test_one_seed_gives_the_same_games_and_rows_differ() -> None:
    env = make_batch_env(EnvConfig(id="CartPole-v1"), num_envs=8)
    first = np.array(env.reset(seed=3))
    assert len(np.unique(first, axis=0)) == 8
    np.testing.assert_array_equal(env.reset(seed=3), first)
    assert not np.isin(env.reset(seed=4), first).any()


def test_environment_of_another_package_is_made_by_module_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_package.py").write_text(
        "import gymnasium\ngymnasium.register(id='Theirs-v0', entry_point='tests.envs.fakes:Echo')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert env_spec(EnvConfig(id="their_package:Theirs-v0")).num_actions == 3


def test_discrete_environment_of_gymnasium_itself_works() -> None:
    env = make_batch_env(EnvConfig(id="FrozenLake-v1", kwargs={"is_slippery": False}), num_envs=2)
    first = env.reset(seed=0)
    assert first.tolist() == [np.eye(16)[0].tolist()] * 2
    right = 2
    assert env.step(np.array([right, right])).observations.argmax(axis=1).tolist() == [1, 1]


def test_unknown_id_suggests_what_may_have_been_meant() -> None:
    message = refusal(EnvConfig(id="Cartpole-v1"))
    assert message.startswith("unknown environment 'Cartpole-v1'; did you mean CartPole-v1 or ")
    assert "CartPole-v1" in refusal(EnvConfig(id="CartPole-v9"))
    assert "did you mean ALE/Pong-v5" in refusal(EnvConfig(id="Pong-v5"))
    assert "drqn_dist/GridWorld-v0" in refusal(EnvConfig(id="GridWorld-v0"))
    assert "name a registered Gymnasium environment" in refusal(EnvConfig(id="xyzzy"))
    assert "unknown environment" in refusal(EnvConfig(id="tests.envs.fakes:Ecco-v0"))


def test_old_atari_id_is_refused_with_the_new_spelling() -> None:
    assert "games are spelt ALE/Pong-v5" in refusal(EnvConfig(id="PongNoFrameskip-v4"))


def test_missing_module_is_named() -> None:
    assert "the module 'no_such_package', which is not installed" in refusal(EnvConfig(id="no_such_package:E-v0"))


def test_missing_dependency_is_named() -> None:
    message = refusal(EnvConfig(id="tests.envs.fakes:drqn_test/NeedsPackage-v0"))
    assert message.endswith("needs a package that is not installed: Box3D is not installed,")


def test_wrong_keyword_argument_is_named() -> None:
    message = refusal(EnvConfig(id="CartPole-v1", kwargs={"lenght": 2}))
    assert message.startswith("CartPole-v1 could not be made with env.kwargs {'lenght': 2}: TypeError: ")


def test_continuous_actions_are_refused() -> None:
    message = refusal(EnvConfig(id="Pendulum-v1"))
    assert message.startswith("Pendulum-v1 has the action space Box(-2.0, 2.0, (1,), float32), which is not supported")
    assert "needs a Discrete action space" in message


def test_unsupported_observations_are_refused() -> None:
    message = refusal(EnvConfig(id=ECHO, kwargs={"observation": "float_image"}))
    assert "has the observation space Box(" in message
    assert "supported are Box uint8" in message


@pytest.mark.parametrize("observation", ["dict", "tuple"])
def test_tuples_and_dicts_are_stepped_as_one_vector(observation: str) -> None:
    batch = make_batch_env(EnvConfig(id=ECHO, kwargs={"observation": observation}), 3)
    width = {"dict": 4, "tuple": 2}[observation]
    assert batch.spec.observation_shape == (width,)
    for observations in (batch.reset(0), batch.step(np.zeros(3, np.int64)).observations):
        assert observations.shape == (3, width)
        assert (observations.sum(axis=1) == width / 2).all(), "one of two is hot in each part"
    batch.close()


def test_each_number_of_an_action_is_one_pair_of_a_multi_discrete_space() -> None:
    batch = make_batch_env(EnvConfig(id="drqn_test/Pairs-v0"), 3)
    assert batch.spec.num_actions == 6
    batch.reset(0)
    assert batch.step(np.array([0, 2, 4])).rewards.tolist() == [0, 2, 11]
    batch.close()


def test_wrappers_go_around_the_environment_from_the_inside_out() -> None:
    wrappers = ["gymnasium.wrappers:FlattenObservation", "tests.envs.fakes:Negated"]
    batch = make_batch_env(EnvConfig(id=ECHO, kwargs={"observation": "hw"}, wrappers=wrappers), 1)
    assert batch.spec.observation_shape == (30,)
    batch.reset(0)
    assert batch.step(np.array([2])).rewards.tolist() == [-2.0]
    batch.close()


@pytest.mark.parametrize("name", ["nowhere:Wrapper", "gymnasium.wrappers:NoSuch"])
def test_a_wrapper_that_cannot_be_had_is_named(name: str) -> None:
    assert name.split(":")[1 if "NoSuch" in name else 0] in refusal(EnvConfig(id=ECHO, wrappers=[name]))


def test_environment_that_cannot_render_is_refused_for_recording() -> None:
    with pytest.raises(EnvError, match="no render mode rgb_array, only \\[\\]"):
        GymBatch(EnvConfig(id=ECHO), num_envs=1, render_mode="rgb_array")


@pytest.mark.parametrize(
    ("breaks_in", "message"),
    [
        (
            "step",
            "drqn_test/Fragile-v0 raised ValueError: the game broke; environment 0 of 2, step 2 of episode 2 "
            "(step 6 of all), action 2",
        ),
        ("reset", "drqn_test/Fragile-v0 raised KeyError: 'level 2'; environment 0 of 2, reset before episode 2"),
    ],
)
def test_an_environment_that_raises_is_named_with_its_row_its_step_and_its_action(breaks_in: str, message: str) -> None:
    batch = make_batch_env(EnvConfig(id="drqn_test/Fragile-v0", kwargs={"breaks_in": breaks_in}), 2)
    batch.reset(0)
    actions = np.array([2, 1])
    for _ in range(4 if breaks_in == "reset" else 6):  # the fifth only resets
        batch.step(actions)
    with pytest.raises(EnvFailedError) as failed:
        batch.step(actions)
    assert str(failed.value) == message
    assert isinstance(failed.value.__cause__, ValueError | KeyError)
    batch.close()
