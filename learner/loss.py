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
        values = h.invert(target_values.gather(-1, best_values.argmax(-1, keepdim=True)).squeeze(-1))
        returns = n_step_targets(rewards, values, windows.steps_left, windows.terminated, config.n_step, config.gamma)
        y = h.apply(returns)
    if config.loss == "huber":
        errors = F.smooth_l1_loss(q_taken, y, reduction="none")
    else:
        errors = 0.5 * F.mse_loss(q_taken, y, reduction="none")
    total = (errors * windows.mask * weights[:, None]).sum()
    loss = total / (len(weights) if config.loss_over_time == "sum" else windows.mask.sum().clamp(min=1.0))
    q_taken = q_taken.detach()
    return TdLoss(loss, y - q_taken, q_taken)
