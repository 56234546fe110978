"""Guarantee 2: one fused, batched, masked unroll equals stepping through the episode."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from drqn_dist.interfaces import EnvSpec
from drqn_dist.network.q_network import NetworkInput, QNetwork
from tests.oracles import step_once, unroll
from tests.tiny import IMAGE, VECTOR, make_network, tiny_config

MIX = EnvSpec((3, 36, 40), "uint8", num_actions=2, frames_per_step=1)
CORES_AND_HEADS = [
    ("gru", "linear"),
    ("gru", "dueling"),
    ("gru", "gru_q"),
    ("lstm", "linear"),
    ("lstm", "dueling"),
    ("none", "linear"),
    ("none", "dueling"),
]
TORSOS = [("nature", IMAGE), ("small", IMAGE), ("small", MIX), ("mlp", IMAGE), ("mlp", VECTOR), ("auto", VECTOR)]


def random_inputs(spec: EnvSpec, batch: int, steps: int, stack: int, seed: int = 0) -> NetworkInput:
    rng = np.random.default_rng(seed)
    shape = (batch, steps, spec.observation_shape[0] * stack, *spec.observation_shape[1:])
    observations = rng.integers(0, 256, shape) if spec.is_image else rng.standard_normal(shape)
    return NetworkInput(
        torch.from_numpy(observations.astype(spec.observation_dtype)),
        torch.from_numpy(rng.integers(-1, spec.num_actions, (batch, steps))),
        torch.from_numpy(rng.standard_normal((batch, steps)).astype(np.float32)),
    )


def stepped(network: QNetwork, inputs: NetworkInput, state: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Q values [B, T, A] and the states before each step and after the last, one step at a time."""
    q_values, states = [], [state]
    for t in range(inputs.last_actions.shape[1]):
        q, state = step_once(network, NetworkInput(*(x[:, t] for x in inputs)), state)
        q_values.append(q)
        states.append(state)
    return torch.stack(q_values, 1) if q_values else torch.empty(0), states


@pytest.mark.parametrize(("torso", "spec"), TORSOS)
@pytest.mark.parametrize(("core", "head"), CORES_AND_HEADS)
def test_unroll_equals_stepping_from_any_state_for_every_network(
    torso: str, spec: EnvSpec, core: str, head: str
) -> None:
    for extra, stack, head_units in itertools.product([False, True], [1, 2], [0, 5]):
        config = tiny_config(
            network={
                "torso": torso,
                "core": core,
                "head": head,
                "last_action_and_reward": extra,
                "head_units": head_units,
            },
            env={"stack_frames": stack},
        )
        network = make_network(config, spec)
        inputs = random_inputs(spec, batch=2, steps=3, stack=stack)
        state = torch.rand_like(network.initial_state(2)) - 0.5
        with torch.no_grad():
            expected, states = stepped(network, inputs, state)
            q_values, final = unroll(network, inputs, state)
        assert q_values.dtype == torch.float32
        assert q_values.shape == (2, 3, spec.num_actions)
        torch.testing.assert_close(q_values, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(final, states[-1], rtol=0, atol=1e-5)


def features(network: QNetwork, inputs: NetworkInput) -> Tensor:
    batch, steps = inputs.last_actions.shape
    folded = network.torso.fold(inputs.observations.flatten(0, 1))
    return network.features(inputs._replace(observations=network.prepare(folded).unflatten(0, (batch, steps))))


@pytest.mark.parametrize("core", ["gru", "lstm", "none"])
@pytest.mark.parametrize(
    ("skipped", "stride"), [([0, 0, 0], 4), ([4, 4, 4], 4), ([4, 2, 0], 2), ([1, 4, 3], 1), ([0, 1, 4], 3)]
)
def test_burn_in_leaves_each_row_where_stepping_its_own_steps_does(core: str, skipped: list[int], stride: int) -> None:
    network = make_network(tiny_config(network={"core": core, "last_action_and_reward": True}), VECTOR)
    inputs = random_inputs(VECTOR, batch=3, steps=4, stack=1)
    state = torch.rand_like(network.initial_state(3)) - 0.5
    with torch.no_grad():
        after = network.burn_in(features(network, inputs), torch.tensor(skipped), stride, state)
        for row, first in enumerate(skipped):
            _, states = stepped(network, NetworkInput(*(x[:, first:] for x in inputs)), state)
            torch.testing.assert_close(after[:, row], states[-1][:, row], rtol=0, atol=1e-5)


def test_burn_in_of_no_columns_keeps_the_state() -> None:
    network = make_network(tiny_config(), VECTOR)
    state = torch.rand(1, 2, 8)
    assert network.burn_in(torch.zeros(2, 0, 8), torch.tensor([0, 0]), 4, state) is state


@pytest.mark.parametrize("core", ["gru", "lstm"])
def test_what_lies_before_a_rows_burn_in_does_not_matter(core: str) -> None:
    network = make_network(tiny_config(network={"core": core}), VECTOR)
    one, two = (random_inputs(VECTOR, batch=2, steps=4, stack=1, seed=seed) for seed in (0, 1))
    for x, y in zip(one, two, strict=True):
        y[:, 3:] = x[:, 3:]
    skipped, state = torch.tensor([3, 4]), network.initial_state(2)
    with torch.no_grad():
        answers = [network.burn_in(features(network, x), skipped, 1, state) for x in (one, two)]
    assert torch.equal(answers[0], answers[1])


@pytest.mark.parametrize(("core", "head"), CORES_AND_HEADS)
def test_bf16_runs_forward_and_backward_close_to_fp32_and_answers_fp32(core: str, head: str) -> None:
    networks = [
        make_network(tiny_config(network={"torso": "small", "core": core, "head": head, "precision": precision}), IMAGE)
        for precision in ("bf16", "fp32")
    ]
    inputs = random_inputs(IMAGE, batch=2, steps=3, stack=1)
    q_values = []
    for network in networks:
        state = network.burn_in(features(network, inputs), torch.tensor([0, 2]), 1, network.initial_state(2))
        q, final = unroll(network, inputs, state)
        assert q.dtype == state.dtype == final.dtype == torch.float32
        q.square().sum().backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        q_values.append(q)
    torch.testing.assert_close(q_values[0], q_values[1], rtol=0, atol=0.03)


@pytest.mark.parametrize("head", ["linear", "dueling", "gru_q"])
def test_q_values_keep_the_digits_of_fp32_where_torso_and_core_run_in_bf16(head: str) -> None:
    network = make_network(tiny_config(network={"head": head, "precision": "bf16"}), VECTOR)
    q_values, _ = unroll(network, random_inputs(VECTOR, 4, 4, 1), network.initial_state(4))
    assert not torch.equal(q_values, q_values.bfloat16().float())
