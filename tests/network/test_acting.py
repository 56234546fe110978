"""What actors run equals the network that the learner trains."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from drqn_dist.interfaces import EnvSpec
from drqn_dist.network.acting import ActingNetwork
from drqn_dist.network.q_network import NetworkInput, QNetwork
from tests.network.test_unroll import random_inputs
from tests.oracles import step_once
from tests.tiny import IMAGE, VECTOR, make_network, tiny_config


def first_step(inputs: NetworkInput) -> NetworkInput:
    return NetworkInput(*(x[:, 0] for x in inputs))


def acted(acting: ActingNetwork, inputs: NetworkInput, channels: int, state: Tensor) -> tuple[Tensor, Tensor]:
    frames = inputs.observations.split(channels, 1)
    stack = torch.cat([acting.fold(frame.contiguous()) for frame in frames], -1)
    return acting.step(stack, inputs.last_actions, inputs.last_rewards, state)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("torso", "spec"), [("small", IMAGE), ("nature", IMAGE), ("mlp", VECTOR), ("mlp", IMAGE)])
def test_acting_equals_a_step_of_the_network(torso: str, spec: EnvSpec, precision: str) -> None:
    for core, extra, stack in itertools.product(["gru", "lstm", "none"], [False, True], [1, 3]):
        settings = {"torso": torso, "core": core, "head": "dueling", "precision": precision}
        config = tiny_config(network=settings | {"last_action_and_reward": extra}, env={"stack_frames": stack})
        network = make_network(config, spec)
        acting = ActingNetwork(network)
        inputs = first_step(random_inputs(spec, 4, 1, stack))
        state = torch.rand_like(network.initial_state(4)) - 0.5
        with torch.no_grad():
            expected, after = step_once(network, inputs, state)
        q_values, final = acted(acting, inputs, spec.observation_shape[0], state)
        assert q_values.dtype == final.dtype == torch.float32
        close = {"rtol": 0, "atol": 1e-6 if precision == "fp32" else 0.01}
        torch.testing.assert_close(q_values, expected, **close)
        torch.testing.assert_close(final, after, **close)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_new_weights_and_a_new_centre_are_taken_over(precision: str) -> None:
    config = tiny_config(network={"torso": "small", "precision": precision})
    trained, network = make_network(config, IMAGE, 1), make_network(config, IMAGE, 0)
    acting = ActingNetwork(network)
    trained.center_pixels(torch.rand(9, 9, 16) * 255)
    acting.load_vector(trained.to_vector())
    inputs = first_step(random_inputs(IMAGE, 4, 1, 1))
    with torch.no_grad():
        expected, _ = step_once(trained, inputs, trained.initial_state(4))
    q_values, _ = acted(acting, inputs, 1, network.initial_state(4))
    torch.testing.assert_close(q_values, expected, rtol=0, atol=1e-6 if precision == "fp32" else 0.02)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_vectors_are_standardized_before_they_are_cast(precision: str) -> None:
    """Numbers near 1000 that differ by 1 are all the same in bfloat16."""
    config = tiny_config(network={"precision": precision, "standardize_vectors": True})
    trained, network = make_network(config, VECTOR, 1), make_network(config, VECTOR, 0)
    acting = ActingNetwork(network)
    (size,) = VECTOR.observation_shape
    trained.standardize(torch.full((size,), 1000.0), torch.ones(size))
    acting.load_vector(trained.to_vector())
    inputs = first_step(random_inputs(VECTOR, 4, 1, 1))
    inputs = inputs._replace(observations=1000.0 + torch.randn(inputs.observations.shape))
    with torch.no_grad():
        expected, _ = step_once(trained, inputs, trained.initial_state(4))
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    q_values, _ = acted(acting, inputs, size, network.initial_state(4))
    torch.testing.assert_close(q_values, expected, rtol=0, atol=1e-6 if precision == "fp32" else 0.02)


def test_the_head_stays_in_fp32() -> None:
    network: QNetwork = make_network(tiny_config(network={"precision": "bf16"}), VECTOR)
    q_values, _ = acted(ActingNetwork(network), first_step(random_inputs(VECTOR, 4, 1, 1)), 3, network.initial_state(4))
    assert not torch.equal(q_values, q_values.bfloat16().float())
