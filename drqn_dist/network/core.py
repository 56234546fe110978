"""Cores: what remembers. A state is one float32 tensor [S, B, H]: S = 1 for GRU, 2 for LSTM (h and c), 0 for none."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence


class Core(nn.Module):
    """A recurrent layer behind one interface, or no memory at all."""

    def __init__(self, kind: Literal["gru", "lstm", "none"], input_size: int, units: int) -> None:
        super().__init__()
        self.state_slots = {"gru": 1, "lstm": 2, "none": 0}[kind]
        self.units = units if kind != "none" else input_size
        self.rnn: nn.GRU | nn.LSTM | None = None
        if kind == "gru":
            self.rnn = nn.GRU(input_size, units, batch_first=True)
        elif kind == "lstm":
            self.rnn = nn.LSTM(input_size, units, batch_first=True)

    def initial_state(self, batch: int) -> Tensor:
        """Zeros [S, B, H] (H = 0 without memory), on the module's device."""
        width = self.units if self.rnn is not None else 0
        device = next((p.device for p in self.parameters()), None)
        return torch.zeros(self.state_slots, batch, width, device=device)

    def forward(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One fused call over all steps.

        Args:
            features: float [B, T, F].
            state: float32 [S, B, H] before the first step.

        Returns:
            outputs [B, T, H] and the state [S, B, H] after the last step.
        """
        if self.rnn is None:
            return features, state
        outputs, final = self.rnn(features, self._unpack(state.to(features.dtype)))
        return outputs, self._pack(final)

    def state_after(self, features: Tensor, lengths: Tensor, state: Tensor) -> Tensor:
        """State of each row after its first `lengths[i]` steps; a row of length 0 keeps its state.

        Args:
            features: float [B, T, F].
            lengths: int64 [B] in [0, T].
            state: float32 [S, B, H].
        """
        if self.rnn is None or features.shape[1] == 0:
            return state
        if bool((lengths == features.shape[1]).all()):
            return self.forward(features, state)[1]
        packed = pack_padded_sequence(features, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        final = self._pack(self.rnn(packed, self._unpack(state.to(features.dtype)))[1])
        return torch.where((lengths > 0).view(1, -1, 1), final, state)

    def _unpack(self, state: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return state if self.state_slots == 1 else (state[:1].contiguous(), state[1:].contiguous())

    def _pack(self, final: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        state = final if isinstance(final, Tensor) else torch.cat(final)
        return state.float()
