"""The recurrent double-Q loss of a batch of windows."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from drqn_dist.config import LearnerConfig, WindowShape
from drqn_dist.network.q_network import NetworkInput, QNetwork
from drqn_dist.qlearning.rescale import value_transform
from drqn_dist.qlearning.returns import learnt_rewards, n_step_targets
from learner.windows import WindowTensors, stack_frames


class TdLoss(NamedTuple):
    """What `td_loss` gives."""

    loss: Tensor
    """float32 [], to be differentiated."""
    td_errors: Tensor
    """float32 [B, T], y - q, detached; in the rescaled space if values are rescaled."""
    q_taken: Tensor
    """float32 [B, T], detached."""


def td_loss(
    network: QNetwork,
    target: QNetwork,
    windows: WindowTensors,
    config: LearnerConfig,
    shape: WindowShape,
    stack: int,
    weights: Tensor,
) -> TdLoss:
    """Importance-weighted TD loss.

    q = Q_θ(s_t)[a_t];  a* = argmax Q_θ(s_{t+m});  y = h(Σ_{k<m} γ^k r_{t+k} + γ^m h⁻¹(Q_θ̄(s_{t+m})[a*]))

    Over the batch it is a mean; over time a mean of all trained steps, or a sum (`learner.loss_over_time`).

    Args:
        stack: frames of one input.
        weights: float32 [B], importance weights.
    """
    burn_in, steps = shape.burn_in, shape.unroll
    with torch.no_grad():  # the same pictures for both networks
        pictures = stack_frames(network.prepare(windows.frames), stack, shape).transpose(0, 1)
    inputs = NetworkInput(pictures, windows.last_actions, windows.last_rewards)

    with torch.no_grad(), target.autocast(pictures.device):
        features = target.features(inputs)
        # Each network burns in with its own weights.
        state = target.burn_in(features[:, :burn_in], windows.skipped, shape.stride, windows.state)
        target_values, _ = target.recur(features[:, burn_in:], state)

    state = windows.state
    if burn_in:
        with torch.no_grad(), network.autocast(pictures.device):
            early = network.features(NetworkInput(*(x[:, :burn_in] for x in inputs)))
            state = network.burn_in(early, windows.skipped, shape.stride, state)
    # In this order, because a weight's cast copy must be made where it is differentiated.
    with network.autocast(pictures.device):
        trained = NetworkInput(*(x[:, burn_in : burn_in + steps] for x in inputs))
        trained_values, state = network.recur(network.features(trained), state)
        with torch.no_grad():
            best_values = target_values
            if config.double_q:  # the online network's tail only chooses actions: no gradient flows there
                tail = NetworkInput(*(x[:, burn_in + steps :] for x in inputs))
                tail_values, _ = network.recur(network.features(tail), state.detach())
                best_values = torch.cat([trained_values, tail_values], dim=1)

    q_taken = trained_values.gather(-1, windows.actions[:, :steps, None]).squeeze(-1)
    with torch.no_grad():
        h = value_transform(config.rescale_values)
        rewards = learnt_rewards(windows.rewards, config)
        if config.munchausen:
            rewards, values = munchausen(rewards, h.invert(target_values), windows.actions, config.munchausen)
            rewards = torch.where(windows.steps_left > 0, rewards, 0.0)  # nothing behind the end
        else:
            values = h.invert(target_values.gather(-1, best_values.argmax(-1, keepdim=True)).squeeze(-1))
        returns = n_step_targets(rewards, values, windows.steps_left, windows.terminated, config.n_step, config.gamma)
        y = h.apply(returns)
    if config.loss == "huber":
        errors = F.smooth_l1_loss(q_taken, y, reduction="none")
    else:
        errors = 0.5 * F.mse_loss(q_taken, y, reduction="none")
    mask = windows.mask
    deviation = 1.0
    if config.trust_region:
        with torch.no_grad():
            error, count = (y - q_taken) * mask, mask.sum().clamp(min=1.0)
            deviation = (error.square().sum() / count - (error.sum() / count).square()).clamp(min=1e-4).sqrt()
            frozen = target_values[:, :steps].gather(-1, windows.actions[:, :steps, None]).squeeze(-1)
            away = q_taken - frozen
            further = (away.abs() > config.trust_region * deviation) & (away.sign() != (q_taken - y).sign())
            mask = mask * ~further
        errors = F.mse_loss(q_taken / deviation, y / deviation, reduction="none") * 0.5
    total = (errors * mask * weights[:, None]).sum()
    loss = total / (len(weights) if config.loss_over_time == "sum" else windows.mask.sum().clamp(min=1.0))
    q_taken = q_taken.detach()
    return TdLoss(loss, (y - q_taken) / deviation, q_taken)


def munchausen(rewards: Tensor, target_values: Tensor, actions: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """r + α·clip(τ log π(a|s), -1, 0) and Σ_a π(a|s)(q(s, a) - τ log π(a|s)), with π = softmax(q / τ), τ = 0.03.

    Args:
        rewards: float32 [B, M].
        target_values: float32 [B, M, A].
        actions: int64 [B, M].
    """
    temperature = 0.03
    scaled = temperature * torch.log_softmax(target_values / temperature, -1)
    taken = scaled.gather(-1, actions[..., None]).squeeze(-1).clamp(-1.0, 0.0)
    soft = temperature * torch.logsumexp(target_values / temperature, -1)
    return rewards + share * taken, soft
