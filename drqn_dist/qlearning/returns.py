"""n-step returns with exact episode ends."""

import torch
from torch import Tensor

from drqn_dist.config import LearnerConfig


def learnt_rewards(rewards: Tensor, config: LearnerConfig) -> Tensor:
    """Rewards as they are learnt from: scaled, then clipped to [-1, 1] where that is wanted."""
    scaled = rewards if config.reward_scale == 1.0 else rewards * config.reward_scale
    return scaled.clamp(-1.0, 1.0) if config.clip_rewards else scaled


def n_step_targets(
    rewards: Tensor, bootstrap_values: Tensor, steps_left: Tensor, terminated: Tensor, n: int, gamma: float
) -> Tensor:
    """G_t = Σ_{k<m} γ^k r_{t+k} + γ^m V(s_{t+m}) with m = min(n, steps to the episode's end).

    ::

        t      0   1   2   3 | end          n = 3, episode ends after step 3
        m      3   3   2   1                the last steps look as far as there is something to see
        V of  s_3  s_4 s_4 s_4              s_4 is the final observation: its value counts at a
                                            truncation and is dropped at a termination

    Args:
        rewards: float32 [B, T + n]; zero from the episode's end on. The last column is not read.
        bootstrap_values: float32 [B, T + n], V(s_t) in the rewards' scale.
        steps_left: int64 [B, T + n] or [B, T]: steps from t to the episode's end, or any number > n.
        terminated: bool [B], whether that end is a termination.
        n: steps summed, >= 1.
        gamma: discount.

    Returns:
        float32 [B, T]; meaningless where steps_left <= 0 (padding).

    Source: Sutton & Barto 2018, equation 12.1; partial episode bootstrapping: Pardo et al. 2018 (arXiv:1712.00378).
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if rewards.shape != bootstrap_values.shape or rewards.shape[1] <= n:
        raise ValueError(
            f"rewards {tuple(rewards.shape)} and values {tuple(bootstrap_values.shape)} must both be "
            f"[B, T + n] with n = {n}"
        )
    length = rewards.shape[1] - n
    left = steps_left[:, :length]
    returns = torch.zeros_like(rewards[:, :length])
    for k in range(n):
        returns += gamma**k * rewards[:, k : k + length]
    m = left.clamp(min=0, max=n)
    t_pm = torch.arange(length, device=rewards.device) + m
    alive = ~(terminated[:, None] & (left <= n))
    discount = torch.pow(torch.full_like(returns, gamma), m) * alive
    return returns + discount * bootstrap_values.gather(1, t_pm)
