"""From environment steps to the learner's targets through every role, against oracles that only know the episodes.

FakeEnv → Actor → FragmentBuffer → codec → Replay → WindowReader → td_loss.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from learner.batch_loader import to_device
from learner.window_reader import WindowReader

from drqn_dist.config import TrainConfig
from drqn_dist.fragment import WindowBatch
from drqn_dist.interfaces import EnvSpec
from learner.loss import TdLoss, td_loss
from tests.fakes import Script
from tests.oracles import read_window, step_through_all, window_errors
from tests.play import Place, Played, all_windows, play
from tests.tiny import IMAGE, VECTOR, make_network, tiny_config

CPU = torch.device("cpu")


def read_all(config: TrainConfig, spec: EnvSpec, played: Played) -> tuple[WindowBatch, list[Place]]:
    sample, places = all_windows(config, played.sink.payloads)
    reader = WindowReader(config, spec)
    out = reader.empty(len(places))
    for array in vars(out).values():  # what the reader does not write must not look right by chance
        if isinstance(array, np.ndarray):
            array.fill(77)
    return reader.read(sample, out), places


@st.composite
def configs(draw: st.DrawFn) -> TrainConfig:
    unroll = draw(st.integers(1, 6))
    stride = draw(st.sampled_from([unroll, draw(st.integers(1, unroll))]))
    core = draw(st.sampled_from(["gru", "lstm", "none"]))
    return tiny_config(
        env={"stack_frames": draw(st.integers(1, 3))},
        network={
            "core": core,
            "head": draw(st.sampled_from(["linear", "dueling", "gru_q"] if core == "gru" else ["linear", "dueling"])),
            "last_action_and_reward": draw(st.booleans()),
        },
        learner={
            "unroll_steps": unroll,
            "burn_in_steps": draw(st.integers(0, 5)),
            "stored_state": draw(st.booleans()),
            "n_step": draw(st.integers(1, 5)),
            "gamma": draw(st.sampled_from([0.0, 0.5, 0.97, 1.0])),
            "double_q": draw(st.booleans()),
            "rescale_values": draw(st.booleans()),
            "clip_rewards": draw(st.booleans()),
        },
        replay={"window_stride_steps": stride},
        actor={"fragment_steps": stride * draw(st.integers(1, 4))},
    )


SCRIPTS = st.lists(
    st.lists(
        st.builds(Script, st.integers(1, 14), st.sampled_from(["terminated", "truncated", "life"])),
        min_size=1,
        max_size=4,
    ),
    min_size=1,
    max_size=3,
)
THOROUGH = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)


@THOROUGH
@given(configs(), SCRIPTS, st.integers(0, 10**6))
def test_trained_values_and_targets_equal_the_oracle_for_random_episodes_and_settings(
    config: TrainConfig, scripts: list[list[Script]], seed: int
) -> None:
    network, target = (make_network(config, VECTOR, seed + k, gain=3) for k in range(2))
    played = play(config, VECTOR, scripts, steps=25, network=network)
    if not played.sink.payloads:
        return
    batch, places = read_all(config, VECTOR, played)
    if not places:
        return
    tensors = to_device(batch, CPU)
    result = td_loss(network, target, tensors, config.learner, torch.ones(len(places)))
    for row, place in enumerate(places):
        episode = played.episode(place.env_id, place.episode_id)
        q_taken, errors = window_errors(config, network, target, episode, place.start)
        trained = len(q_taken)
        assert batch.mask[row].tolist() == [1.0] * trained + [0.0] * (config.learner.unroll_steps - trained)
        assert result.q_taken[row, :trained].tolist() == pytest.approx(q_taken, rel=1e-5, abs=1e-5)
        assert result.td_errors[row, :trained].tolist() == pytest.approx(errors, rel=1e-4, abs=5e-5)


@THOROUGH
@given(configs(), SCRIPTS, st.integers(0, 10**6))
def test_each_array_of_a_window_equals_the_plain_episode(
    config: TrainConfig, scripts: list[list[Script]], seed: int
) -> None:
    network = make_network(config, VECTOR, seed)
    played = play(config, VECTOR, scripts, steps=25, network=network)
    if not played.sink.payloads:
        return
    batch, places = read_all(config, VECTOR, played)
    shape = config.window
    for row, place in enumerate(places):
        episode = played.episode(place.env_id, place.episode_id)
        expected = read_window(config, episode, place.start)
        burn_in = int(expected["burn_in_lengths"])
        # Without a use for it, the step before the window's first one may not have been sent along.
        unsent = shape.history == 0 and place.start > burn_in
        first_column = 0 if burn_in else shape.burn_in
        for name, values in expected.items():
            actual = getattr(batch, name)[row].copy()
            if unsent and name in ("last_actions", "last_rewards"):
                actual[first_column] = values[first_column]
            if name in ("actions", "rewards"):  # the step after the last observation is not part of the window
                actual, values = actual[:-1], values[:-1]
            np.testing.assert_array_equal(actual, values, err_msg=name)
        check_end(config, batch, row, place, played)
        check_state(config, batch, row, place, played, network)


def check_end(config: TrainConfig, batch: WindowBatch, row: int, place: Place, played: Played) -> None:
    episode, n = played.episode(place.env_id, place.episode_id), config.learner.n_step
    for k, left in enumerate(batch.steps_left[row, : config.learner.unroll_steps].tolist()):
        truth = episode.num_steps - (place.start + k)
        if episode.ended and truth <= n:  # the end shortens the return, or is where it bootstraps
            assert left == truth
            assert batch.terminated[row] == episode.terminated
        else:
            assert left > n or (left == n and not batch.terminated[row])


def check_state(config: TrainConfig, batch: WindowBatch, row: int, place: Place, played: Played, network: Any) -> None:
    first = place.start - int(batch.burn_in_lengths[row])
    state = network.initial_state(1)
    if config.learner.stored_state:
        episode = played.episode(place.env_id, place.episode_id)
        state = step_through_all(network, episode, config.env.stack_frames)[1][first]
    np.testing.assert_allclose(batch.state[:, row], state[:, 0].numpy(), atol=1e-5)


@THOROUGH
@given(configs(), SCRIPTS, st.integers(0, 10**6))
def test_every_step_of_every_episode_is_trained_and_without_overlap_exactly_once(
    config: TrainConfig, scripts: list[list[Script]], seed: int
) -> None:
    played = play(config, VECTOR, scripts, steps=25, network=make_network(config, VECTOR, seed))
    pushed = {(f.env_id, f.episode_id) for f in played.sink.fragments if f.ends_episode}
    if not pushed:
        return
    batch, places = read_all(config, VECTOR, played)
    trained: Counter[tuple[int, int, int]] = Counter()
    for row, place in enumerate(places):
        for k in np.flatnonzero(batch.mask[row]).tolist():
            trained[place.env_id, place.episode_id, place.start + k] += 1
    for env_id, episode_id in pushed:
        for step in range(played.episode(env_id, episode_id).num_steps):
            times = trained[env_id, episode_id, step]
            assert times == 1 if config.window.stride == config.window.unroll else times >= 1
    for env_id, episodes in enumerate(played.env.episodes):
        finished = {(env_id, i) for i, e in enumerate(episodes) if e.ended}
        # Only an end that came with the very last step is still with the actor.
        assert len(finished - pushed) <= 1


def test_images_stacks_last_actions_and_rewards_are_right_across_fragments() -> None:
    config = tiny_config(
        env={"stack_frames": 4},
        network={"torso": "small", "last_action_and_reward": True, "head": "dueling"},
        learner={"unroll_steps": 3, "burn_in_steps": 2, "n_step": 2},
        actor={"fragment_steps": 3},
    )
    network, target = make_network(config, IMAGE), make_network(config, IMAGE, 1)
    scripts = [[Script(11), Script(1), Script(5, "life"), Script(4)], [Script(7, "truncated")]]
    played = play(config, IMAGE, scripts, steps=26, network=network)
    batch, places = read_all(config, IMAGE, played)
    assert {place.start for place in places} == {0, 3, 6, 9}
    tensors = to_device(batch, CPU)
    result = td_loss(network, target, tensors, config.learner, torch.ones(len(places)))
    for row, place in enumerate(places):
        episode = played.episode(place.env_id, place.episode_id)
        expected = read_window(config, episode, place.start)
        for name in ("observations", "last_actions", "last_rewards"):
            np.testing.assert_array_equal(getattr(batch, name)[row], expected[name], err_msg=name)
        q_taken, errors = window_errors(config, network, target, episode, place.start)
        assert result.q_taken[row, : len(q_taken)].tolist() == pytest.approx(q_taken, abs=1e-5)
        assert result.td_errors[row, : len(q_taken)].tolist() == pytest.approx(errors, abs=1e-5)


def loss_of(config: TrainConfig, result: TdLoss, mask: torch.Tensor, weights: torch.Tensor) -> float:
    total, steps = 0.0, 0
    for row, errors in enumerate(result.td_errors.tolist()):
        for k, error in enumerate(errors):
            if mask[row, k]:
                huber = 0.5 * error**2 if abs(error) < 1 else abs(error) - 0.5
                total += weights[row].item() * (huber if config.learner.loss == "huber" else 0.5 * error**2)
                steps += 1
    return total / (steps if config.learner.loss_over_time == "mean" else len(mask))


@pytest.mark.parametrize("loss", ["huber", "squared"])
@pytest.mark.parametrize("over_time", ["mean", "sum"])
def test_the_loss_is_the_weighted_mean_over_trained_steps_or_their_sum_by_window(loss: str, over_time: str) -> None:
    config = tiny_config(learner={"loss": loss, "loss_over_time": over_time, "clip_rewards": False, "n_step": 3})
    network, target = make_network(config, VECTOR), make_network(config, VECTOR, 1)
    played = play(config, VECTOR, [[Script(7), Script(10, "truncated")]], steps=40, network=network)
    batch, places = read_all(config, VECTOR, played)
    tensors = to_device(batch, CPU)
    weights = torch.linspace(0.1, 1.0, len(places))
    result = td_loss(network, target, tensors, config.learner, weights)
    assert result.td_errors.abs().max() > 1  # both branches of Huber
    assert 0 < tensors.mask.mean() < 1  # windows at an episode's end train fewer steps
    assert result.loss.item() == pytest.approx(loss_of(config, result, tensors.mask, weights), rel=1e-5)
