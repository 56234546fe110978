"""The batch of environments at once, against one environment at a time (`naive.py`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.fragment_buffer import FragmentBuffer
from drqn_dist.codec import encode
from drqn_dist.config import TrainConfig
from drqn_dist.fragment import Fragment
from drqn_dist.interfaces import StepBatch
from drqn_dist.presets import preset
from tests.actors.naive import NaiveBuilder
from tests.fakes import Script
from tests.play import play
from tests.tiny import VECTOR, make_network, tiny_config

Pairs = tuple[list[Fragment], list[Fragment]]


def cut_both_ways(config: TrainConfig, envs: int, steps: int, seed: int, slots: int = 2, period: int = 1) -> Pairs:
    """Random steps whose episodes end at random in each of the three ways.

    Args:
        slots: S of the state.
        period: steps between two calls of `take`.
    """
    rng = np.random.default_rng(seed)
    buffer = FragmentBuffer(config, VECTOR, 3, envs, incarnation=2)
    builders = [NaiveBuilder(config, 3, env_id, incarnation=2) for env_id in range(envs)]
    mine: list[Fragment] = []
    naive: list[Fragment] = []
    begins, idle = np.ones(envs, np.bool_), np.zeros(envs, np.bool_)
    observations = np.empty((envs, 3), np.float32)  # reused, as an environment may do
    for version in range(steps):
        observations[:] = rng.normal(size=observations.shape)
        q_values = rng.normal(size=(envs, 4)).astype(np.float32)
        states = rng.normal(size=(slots, envs, 5)).astype(np.float32)
        buffer.observe(observations, q_values, states, begins, version)
        if version % period == 0:
            mine += buffer.take()
        for i, builder in enumerate(builders):
            naive += builder.observe(observations[i], q_values[i], states[:, i], bool(begins[i]), version)
        active, actions = ~idle, rng.integers(0, 4, envs)
        kind = rng.integers(0, 25, envs)  # 0 a lost life, 1 a termination, 2 a truncation, else the episode goes on
        batch = StepBatch(
            observations,
            rng.choice(np.array([-2, -0.3, 0, 0.3, 1], np.float32), envs),
            terminated=(kind < 2) & active,
            truncated=(kind == 2) & active,
            reset_pending=((kind == 1) | (kind == 2)) & active,
        )
        buffer.add(actions, batch, active)
        for i in np.flatnonzero(active):
            builders[i].add(
                int(actions[i]), float(batch.rewards[i]), bool(batch.terminated[i]), bool(batch.truncated[i])
            )
        begins = idle | ((kind == 0) & active)
        idle = batch.reset_pending
    return mine + buffer.take(), naive


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    unroll=st.integers(1, 9),
    overlap=st.integers(0, 8),
    multiple=st.integers(1, 3),
    n_step=st.integers(1, 5),
    burn_in=st.integers(0, 6),
    rescale=st.booleans(),
    clip=st.booleans(),
    stored=st.booleans(),
    slots=st.integers(0, 2),
    envs=st.integers(1, 5),
    period=st.integers(1, 9),
    seed=st.integers(0, 10**6),
)
def test_all_environments_at_once_give_the_fragments_of_one_at_a_time(
    unroll: int,
    overlap: int,
    multiple: int,
    n_step: int,
    burn_in: int,
    rescale: bool,
    clip: bool,
    stored: bool,
    slots: int,
    envs: int,
    period: int,
    seed: int,
) -> None:
    stride = max(1, unroll - overlap)
    config = tiny_config(
        learner={
            "unroll_steps": unroll,
            "n_step": n_step,
            "burn_in_steps": burn_in,
            "rescale_values": rescale,
            "clip_rewards": clip,
            "stored_state": stored,
        },
        replay={"window_stride_steps": stride},
        actor={"fragment_steps": stride * multiple},
    )
    mine, naive = cut_both_ways(config, envs, steps=60, seed=seed, slots=slots, period=period)
    assert len(mine) == len(naive)
    for one, other in zip(mine, naive, strict=True):
        assert one.priorities.tolist() == pytest.approx(other.priorities.tolist(), rel=1e-4, abs=1e-5)
        assert encode(replace(one, priorities=other.priorities)) == encode(other)


def test_the_random_steps_hold_every_kind_of_end_and_many_fragments() -> None:
    mine, _ = cut_both_ways(tiny_config(actor={"fragment_steps": 4}), 5, 60, 0)
    assert {(f.terminated, f.truncated) for f in mine} == {(False, False), (True, False), (False, True)}
    assert len(mine) > 50


def test_fragments_do_not_change_when_the_buffer_goes_on() -> None:
    config = tiny_config(actor={"fragment_steps": 4})
    early, _ = cut_both_ways(config, 3, 5, 1)
    whole, _ = cut_both_ways(config, 3, 30, 1)
    assert [encode(f) for f in early] == [encode(f) for f in whole[: len(early)]]
    assert 0 < len(early) < len(whole)


def overlapping(unroll: int, stride: int, fragment: int) -> TrainConfig:
    """Without a discount and with all Q values 0, a step's error is its reward."""
    return tiny_config(
        learner={"unroll_steps": unroll, "gamma": 0.0, "clip_rewards": False},
        replay={"window_stride_steps": stride},
        actor={"fragment_steps": fragment},
    )


def test_a_window_that_reaches_into_the_next_fragment_is_priced_by_all_its_steps() -> None:
    config = overlapping(unroll=4, stride=2, fragment=2)
    played = play(config, VECTOR, [[Script(7)]], steps=8, network=make_network(config, VECTOR, gain=0))
    assert [(f.first_step, f.num_steps) for f in played.sink.fragments] == [(0, 2), (2, 2), (4, 2), (6, 1)]
    errors = np.abs(played.episode(0, 0).rewards)
    trained = [errors[0:4], errors[2:6], errors[4:7], errors[6:7]]
    for fragment, window in zip(played.sink.fragments, trained, strict=True):
        expected = 0.9 * window.max() + 0.1 * window.mean() + 0.001
        assert fragment.priorities.tolist() == pytest.approx([expected])


@pytest.mark.parametrize(
    ("unroll", "stride", "fragment", "seen"),
    [
        (4, 4, 4, [4, 8, 9]),  # no overlap: at the observation after a fragment's last step, o_4 and o_8
        (6, 4, 4, [6, 9, 9]),  # 6 - 4 = 2 steps later, at o_6, or when the episode ends, at o_9
        (4, 1, 2, [5, 7, 9, 9, 9]),  # 4 - 1 = 3 steps later, more than a fragment
    ],
)
def test_a_fragment_leaves_when_the_steps_that_its_windows_train_are_known(
    unroll: int, stride: int, fragment: int, seen: list[int]
) -> None:
    config = overlapping(unroll, stride, fragment)
    network = make_network(config, VECTOR)
    left = [len(play(config, VECTOR, [[Script(9)]], steps, network).sink.payloads) for steps in range(12)]
    # After k steps of the actor it has seen the observations o_0 ... o_{k-1}.
    assert [int(np.argmax(np.array(left) > i)) - 1 for i in range(len(seen))] == seen
    assert left[-1] == len(seen)


@pytest.mark.parametrize(("name", "delay"), [("r2d2", 40), ("drqn", 0), ("pong-cpu", 0)])
def test_only_overlapping_windows_delay_a_fragment(name: str, delay: int) -> None:
    shape = preset(name).window
    assert shape.unroll - shape.stride == delay


def test_small_rewards_stay_as_they_are_where_rewards_are_clipped() -> None:
    config = overlapping(4, 4, 4)
    config = replace(config, learner=replace(config.learner, clip_rewards=True))
    buffer = FragmentBuffer(config, VECTOR, 0, 1)
    no, q_values, state = np.zeros(1, np.bool_), np.zeros((1, 4), np.float32), np.zeros((0, 1, 0), np.float32)
    fragments: list[Any] = []
    for step, reward in enumerate([0.3, -0.2, 5.0, 0.0, 0.0]):
        observation = np.zeros((1, 3), np.float32)
        buffer.observe(observation, q_values, state, np.array([step == 0]), 0)
        fragments += buffer.take()
        buffer.add(np.zeros(1, np.int64), StepBatch(observation, np.array([reward], np.float32), no, no, no), ~no)
    # Errors 0.3, 0.2, 1 and 0: η max + (1 - η) mean with η = 0.9.
    expected = 0.9 * 1.0 + 0.1 * (0.3 + 0.2 + 1.0 + 0.0) / 4 + 0.001
    assert fragments[0].priorities.tolist() == pytest.approx([expected])
    assert fragments[0].rewards.tolist() == pytest.approx([0.3, -0.2, 5.0, 0.0])
