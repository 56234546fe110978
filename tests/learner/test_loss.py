"""What must not happen in the loss; what must is in test_whole_path.py, against the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from drqn_dist.network.q_network import NetworkInput
from learner.batch_loader import TensorBatch
from learner.loss import td_loss
from tests.learner.batches import some_batches
from tests.tiny import VECTOR, make_network, tiny_config

LEARNER = {"unroll_steps": 4, "burn_in_steps": 3, "n_step": 2, "clip_rewards": False}


def made(core: str = "gru", **learner: Any) -> tuple[Any, Any, Any, TensorBatch, Tensor]:
    config = tiny_config(network={"core": core, "last_action_and_reward": True}, learner=LEARNER | learner)
    (batch,) = some_batches(config, 1, windows=8)
    assert set(batch.burn_in_lengths.tolist()) == {0, 3}
    assert 0 < batch.mask.mean() < 1
    return config, make_network(config, VECTOR, 0), make_network(config, VECTOR, 1), batch, torch.ones(8)


def with_inputs(batch: TensorBatch, **changes: Tensor) -> TensorBatch:
    return batch._replace(inputs=batch.inputs._replace(**changes))


def gradient_of(function: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    gradients = torch.autograd.grad(function, tensors, allow_unused=True)
    return tuple(torch.zeros_like(t) if g is None else g for t, g in zip(tensors, gradients, strict=True))


@pytest.mark.parametrize("core", ["gru", "lstm"])
def test_no_gradient_flows_into_burn_in_or_the_stored_state(core: str) -> None:
    config, network, target, batch, weights = made(core)
    observations = batch.inputs.observations.clone().requires_grad_()
    state = batch.state.clone().requires_grad_()
    batch = with_inputs(batch._replace(state=state), observations=observations)
    into_observations, into_state = gradient_of(
        td_loss(network, target, batch, config.learner, weights).loss, observations, state
    )
    assert not into_observations[:, :3].any()
    assert into_observations[:, 3].any(-1).all()  # every row's first trained step
    assert not into_state[:, batch.burn_in_lengths > 0].any()


def test_the_gradient_is_that_of_an_unroll_from_the_state_after_burn_in() -> None:
    config, network, target, batch, weights = made()
    td_loss(network, target, batch, config.learner, weights).loss.backward()
    mine = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    early = NetworkInput(*(x[:, :3] for x in batch.inputs))
    with torch.no_grad():
        state = network.state_after(early, batch.burn_in_lengths, batch.state)
    q_values, _ = network.unroll(NetworkInput(*(x[:, 3:] for x in batch.inputs)), state.detach())
    q_taken = q_values[:, :4].gather(-1, batch.actions[:, :4, None]).squeeze(-1)
    result = td_loss(network, target, batch, config.learner, weights)
    y = result.td_errors + result.q_taken
    loss = torch.nn.functional.smooth_l1_loss(q_taken, y, reduction="none")
    ((loss * batch.mask).sum() / batch.mask.sum()).backward()
    for one, two in zip(mine, network.parameters(), strict=True):
        torch.testing.assert_close(one, two.grad)


def test_burn_in_changes_the_state_of_both_networks_each_by_its_own_weights() -> None:
    config, network, target, batch, weights = made(double_q=False)
    early = NetworkInput(*(x[:, :3] for x in batch.inputs))
    main = NetworkInput(*(x[:, 3:] for x in batch.inputs))
    with torch.no_grad():
        own = target.state_after(early, batch.burn_in_lengths, batch.state)
        borrowed = network.state_after(early, batch.burn_in_lengths, batch.state)
        values, wrong = (target.unroll(main, state)[0].amax(-1) for state in (own, borrowed))
        result = td_loss(network, target, batch, config.learner, weights)
    y = result.td_errors + result.q_taken
    whole = (batch.burn_in_lengths > 0) & (batch.steps_left[:, 0] > 2)
    rewards, gamma = batch.rewards, config.learner.gamma
    expected = rewards[:, 0] + gamma * rewards[:, 1] + gamma**2 * values[:, 2]
    torch.testing.assert_close(y[whole, 0], expected[whole])
    assert ((values - wrong)[whole, 2].abs() > 1e-4).all()


def test_padding_changes_neither_the_loss_nor_any_gradient() -> None:
    config, network, target, batch, weights = made()
    padding = torch.ones(batch.inputs.last_actions.shape, dtype=torch.bool)
    for row in range(8):
        padding[row, : batch.burn_in_lengths[row]] = False
        left = int(batch.steps_left[row, 0])
        padding[row, 3 : 3 + left + 1] = False
    assert padding.any(1).sum() > 4
    noise = torch.randn_like(batch.inputs.observations)
    noisy = with_inputs(
        batch,
        observations=torch.where(padding[..., None], noise, batch.inputs.observations),
        last_actions=torch.where(padding, 2, batch.inputs.last_actions),
        last_rewards=torch.where(padding, 0.7, batch.inputs.last_rewards),
    )._replace(actions=torch.where(padding[:, 3:] & (batch.actions == 0), 3, batch.actions))
    parameters = list(network.parameters())
    results = []
    for given in (batch, noisy):
        loss = td_loss(network, target, given, config.learner, weights).loss
        results.append((loss, gradient_of(loss, *parameters)))
    assert results[0][0].item() == pytest.approx(results[1][0].item(), abs=1e-7)
    for one, two in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-7)


def test_the_target_network_gets_no_gradient() -> None:
    config, network, target, batch, weights = made()
    td_loss(network, target, batch, config.learner, weights).loss.backward()
    assert all(p.grad is None for p in target.parameters())
    assert all(p.grad is not None for p in network.parameters())


def test_a_window_counts_by_its_importance_weight() -> None:
    config, network, target, batch, _ = made()
    alone = []
    for row in range(8):
        weights = torch.zeros(8)
        weights[row] = 1
        alone.append(td_loss(network, target, batch, config.learner, weights).loss.item())
    weights = torch.linspace(0.1, 1, 8)
    together = td_loss(network, target, batch, config.learner, weights).loss.item()
    assert together == pytest.approx(sum(w * x for w, x in zip(weights.tolist(), alone, strict=True)), rel=1e-5)


@pytest.mark.parametrize(
    ("clip", "seen"), [(True, [-1.0, -0.3, 0.0, 0.3, 1.0]), (False, [-20.0, -0.3, 0.0, 0.3, 20.0])]
)
def test_rewards_are_clipped_to_one_only_if_asked_for_and_small_ones_stay(clip: bool, seen: list[float]) -> None:
    config, network, target, batch, weights = made(clip_rewards=clip, n_step=1, gamma=0.0)
    for reward, expected in zip([-20.0, -0.3, 0.0, 0.3, 20.0], seen, strict=True):
        batch = batch._replace(rewards=torch.full_like(batch.rewards, reward))
        result = td_loss(network, target, batch, config.learner, weights)
        y = result.td_errors + result.q_taken  # without a discount it is the reward
        torch.testing.assert_close(y[batch.mask > 0], torch.full((int(batch.mask.sum()),), expected))
