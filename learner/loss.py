"""The recurrent double-Q loss of a batch of windows."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from drqn_dist.config import LearnerConfig
from drqn_dist.network.q_network import NetworkInput, QNetwork
from drqn_dist.qlearning.rescale import value_transform
from drqn_dist.qlearning.returns import n_step_targets
from learner.batch_loader import TensorBatch


class TdLoss(NamedTuple):
    """What `td_loss` gives."""

    loss: Tensor
    """float32 [], to be differentiated."""
    td_errors: Tensor
    """float32 [B, T], y - q, detached; in the rescaled space if values are rescaled."""
    q_taken: Tensor
    """float32 [B, T], detached."""


def td_loss(network: QNetwork, target: QNetwork, batch: TensorBatch, config: LearnerConfig, weights: Tensor) -> TdLoss:
    """Importance-weighted TD loss, averaged over the trained steps.

    q = Q_θ(s_t)[a_t];  a* = argmax Q_θ(s_{t+m});  y = h(Σ_{k<m} γ^k r_{t+k} + γ^m h⁻¹(Q_θ̄(s_{t+m})[a*]))

    Args:
        weights: float32 [B], importance weights.
    """
    state, target_state = batch.state, batch.state
    main = batch.inputs
    if config.burn_in_steps:
        early = NetworkInput(*(x[:, : config.burn_in_steps] for x in batch.inputs))
        main = NetworkInput(*(x[:, config.burn_in_steps :] for x in batch.inputs))
        with torch.no_grad():  # each network burns in with its own weights
            state = network.state_after(early, batch.burn_in_lengths, batch.state)
            target_state = target.state_after(early, batch.burn_in_lengths, batch.state)

    steps = batch.mask.shape[1]
    trained_values, state = network.unroll(NetworkInput(*(x[:, :steps] for x in main)), state)
    q_taken = trained_values.gather(-1, batch.actions[:, :steps, None]).squeeze(-1)
    with torch.no_grad():
        target_values, _ = target.unroll(main, target_state)
        best = target_values.argmax(-1, keepdim=True)
        if config.double_q:  # the online network's tail only chooses actions: no gradient flows there
            tail_values, _ = network.unroll(NetworkInput(*(x[:, steps:] for x in main)), state)
            best = torch.cat([trained_values, tail_values], dim=1).argmax(-1, keepdim=True)
        h = value_transform(config.rescale_values)
        rewards = batch.rewards.clamp(-1.0, 1.0) if config.clip_rewards else batch.rewards
        values = h.invert(target_values.gather(-1, best).squeeze(-1))
        returns = n_step_targets(rewards, values, batch.steps_left, batch.terminated, config.n_step, config.gamma)
        y = h.apply(returns)
    if config.loss == "huber":
        errors = F.smooth_l1_loss(q_taken, y, reduction="none")
    else:
        errors = 0.5 * F.mse_loss(q_taken, y, reduction="none")
    loss = (errors * batch.mask * weights[:, None]).sum() / batch.mask.sum().clamp(min=1.0)
    q_taken = q_taken.detach()
    return TdLoss(loss, y - q_taken, q_taken)
