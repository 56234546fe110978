"""Heads: features in, one Q value per action out. Always float32: near Q = 1, bfloat16 steps by 0.004, which is
as coarse as the gaps between actions, and learning stalls."""

from typing import Literal

from torch import Tensor, nn


def _stream(size: int, hidden: int, out: int) -> nn.Module:
    if hidden == 0:
        return nn.Linear(size, out)
    return nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, out))


class DuelingHead(nn.Module):
    """Q = V + A - mean(A) (Wang et al. 2016, equation 9)."""

    def __init__(self, size: int, hidden: int, num_actions: int) -> None:
        super().__init__()
        self.value = _stream(size, hidden, 1)
        self.advantage = _stream(size, hidden, num_actions)

    def forward(self, features: Tensor) -> Tensor:
        """float32 [..., F] → float32 [..., A]."""
        advantage = self.advantage(features)
        q_values: Tensor = self.value(features) + advantage - advantage.mean(-1, keepdim=True)
        return q_values


def make_head(kind: Literal["linear", "dueling", "gru_q"], size: int, hidden: int, num_actions: int) -> nn.Module:
    """gru_q passes the GRU's hidden state through: it has one unit per action and is the Q value itself, hence
    confined to (-1, 1). That is the article's network; use it to reproduce the article only."""
    if kind == "gru_q":
        return nn.Identity()
    if kind == "dueling":
        return DuelingHead(size, hidden, num_actions)
    return _stream(size, hidden, num_actions)
