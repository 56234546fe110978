from __future__ import annotations

import numpy as np
import pytest
import torch

from actors.policy import RecurrentPolicy
from drqn_dist.config import TrainConfig
from drqn_dist.interfaces import EnvSpec
from drqn_dist.network.q_network import NetworkInput, QNetwork
from tests.oracles import step_once
from tests.tiny import IMAGE, VECTOR, make_network, tiny_config

NOBODY, BOTH = np.array([False, False]), np.array([True, True])
GREEDY = np.zeros(2)


def make_policy(config: TrainConfig, spec: EnvSpec = VECTOR, seed: int = 0) -> tuple[RecurrentPolicy, QNetwork]:
    network = make_network(config, spec)
    return RecurrentPolicy(network, spec, config.env.stack_frames, 2, np.random.default_rng(seed)), network


def observations(value: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.full((2, 3), value, np.float32) * np.array([[1], [-2]], np.float32)


def rewards(value: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.full(2, value, np.float32)


def test_a_greedy_policy_takes_the_best_action_and_remembers() -> None:
    policy, network = make_policy(tiny_config(network={"last_action_and_reward": True}))
    state = network.initial_state(2)
    last_actions = torch.tensor([-1, -1])
    for t, reward in enumerate([0.0, 0.5, -1.0, 1.0]):
        with torch.no_grad():
            expected, next_state = step_once(
                network, NetworkInput(torch.from_numpy(observations(t)), last_actions, torch.full((2,), reward)), state
            )
        decision = policy.act(observations(t), BOTH if t == 0 else NOBODY, rewards(reward), GREEDY)
        assert decision.q_values.tolist() == expected.tolist()
        assert decision.actions.tolist() == expected.argmax(1).tolist()
        assert decision.states.tolist() == state.tolist()
        state, last_actions = next_state, torch.from_numpy(decision.actions)


@pytest.mark.parametrize("core", ["gru", "lstm", "none"])
def test_a_row_that_begins_forgets_everything_and_the_others_nothing(core: str) -> None:
    config = tiny_config(network={"last_action_and_reward": True, "core": core}, env={"stack_frames": 3})
    one, _ = make_policy(config)
    two, _ = make_policy(config)
    for t in range(3):
        one.act(observations(t), BOTH if t == 0 else NOBODY, rewards(1), GREEDY)
        two.act(observations(t), BOTH if t == 0 else NOBODY, rewards(1), GREEDY)
    again = one.act(observations(7), np.array([True, False]), rewards(1), GREEDY)
    fresh = make_policy(config)[0].act(observations(7), BOTH, rewards(0), GREEDY)
    going_on = two.act(observations(7), NOBODY, rewards(1), GREEDY)
    assert not again.states[:, 0].any()
    assert again.q_values[0].tolist() == pytest.approx(fresh.q_values[0].tolist(), abs=1e-6)
    assert again.q_values[1].tolist() == pytest.approx(going_on.q_values[1].tolist(), abs=1e-6)
    assert again.states[:, 1].tolist() == going_on.states[:, 1].tolist()


def test_an_episode_shows_its_first_frame_before_its_start() -> None:
    config = tiny_config(network={"torso": "small"}, env={"stack_frames": 3})
    policy, _ = make_policy(config, IMAGE)
    shown = []
    for t in range(4):
        frames = np.full((2, 1, 36, 36), t, np.uint8) + np.array([0, 100], np.uint8).reshape(2, 1, 1, 1)
        policy.act(frames, np.array([t == 0, t in (0, 2)]), rewards(0), GREEDY)
        shown.append(policy._stack[:, 0, 0, ::16].tolist())  # a frame's 16 folded pixels lie side by side
    assert [row[0] for row in shown] == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3]]
    assert [row[1] for row in shown] == [[100, 100, 100], [100, 100, 101], [102, 102, 102], [102, 102, 103]]


def test_actions_taken_at_random_are_the_last_actions_of_the_next_step() -> None:
    policy, network = make_policy(tiny_config(network={"last_action_and_reward": True}))
    seen: list[torch.Tensor] = []
    network.core.register_forward_pre_hook(lambda _module, given: seen.append(given[0][:, 0, 8:12].clone()))
    explored = 0
    before = None
    for t in range(20):
        decision = policy.act(observations(t), BOTH if t == 0 else NOBODY, rewards(0), np.ones(2))
        if before is not None:
            assert seen[-1].argmax(1).tolist() == before.tolist()
        explored += int((decision.actions != decision.q_values.argmax(1)).sum())
        before = decision.actions.copy()
        decision.actions[:] = 99  # what the caller does with its copy is its own business
    assert explored > 0


@pytest.mark.parametrize("core", ["gru", "lstm", "none"])
def test_a_decision_does_not_change_when_the_policy_goes_on(core: str) -> None:
    policy, _ = make_policy(tiny_config(network={"core": core}))
    policy.act(observations(1), BOTH, rewards(0), GREEDY)
    decision = policy.act(observations(1), NOBODY, rewards(0), GREEDY)
    copies = [x.copy() for x in (decision.actions, decision.q_values, decision.states)]
    policy.act(observations(3), BOTH, rewards(0), np.ones(2))
    for mine, copy in zip((decision.actions, decision.q_values, decision.states), copies, strict=True):
        assert mine.tolist() == copy.tolist()


def test_each_environment_explores_at_its_own_rate_and_uniformly() -> None:
    policy, _ = make_policy(tiny_config())
    counts = np.zeros((2, 4))
    steps = 1500
    for t in range(steps):
        decision = policy.act(observations(1), BOTH, rewards(0), np.array([0.0, 0.4]))
        counts[[0, 1], decision.actions] += 1
        best = decision.q_values.argmax(1)
        assert decision.actions[0] == best[0], t
    share = counts[1] / steps
    expected = np.full(4, 0.4 / 4)
    expected[best[1]] += 0.6
    deviation = np.sqrt(expected * (1 - expected) / steps)
    assert (np.abs(share - expected) < 5 * deviation).all()


def test_the_same_generator_gives_the_same_actions() -> None:
    def actions(seed: int) -> list[list[int]]:
        policy, _ = make_policy(tiny_config(), seed=seed)
        return [[int(a) for a in policy.act(observations(t), BOTH, rewards(0), np.ones(2)).actions] for t in range(10)]

    assert actions(1) == actions(1) != actions(2)
