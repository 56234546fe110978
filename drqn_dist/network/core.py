"""Cores: what remembers. A state is one float32 tensor [S, B, H]: S = 1 for GRU, 2 for LSTM (h and c), 0 for none."""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn


class Core(nn.Module):
    """A recurrent layer behind one interface, or no memory at all."""

    def __init__(self, kind: Literal["gru", "lstm", "none"], input_size: int, units: int, norm: bool = False) -> None:
        """
        Args:
            norm: LayerNorm (Ba et al. 2016, arXiv:1607.06450) before and after it; the state stays as it is.
        """
        super().__init__()
        self.state_slots = {"gru": 1, "lstm": 2, "none": 0}[kind]
        self.units = units if kind != "none" else input_size
        self.rnn: nn.GRU | nn.LSTM | None = None
        if kind == "gru":
            self.rnn = nn.GRU(input_size, units, batch_first=True)
        elif kind == "lstm":
            self.rnn = nn.LSTM(input_size, units, batch_first=True)
        norm = norm and self.rnn is not None
        self.before: nn.Module = nn.LayerNorm(input_size) if norm else nn.Identity()
        self.after: nn.Module = nn.LayerNorm(units) if norm else nn.Identity()

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
        normed = self.before(features)
        if features.is_cuda:
            # Autocast would run cuDNN's cores in float16, whatever it is asked for.
            with torch.autocast("cuda", enabled=False):
                outputs, final = self.rnn(normed.float(), self._unpack(state))
        else:
            outputs, final = self.rnn(normed.to(features.dtype), self._unpack(state.to(features.dtype)))
        return self.after(outputs), self._pack(final)

    def burn_in(self, features: Tensor, skipped: Tensor, stride: int, state: Tensor) -> Tensor:
        """State of each row after its last step; row i begins with its own state at column `skipped[i]`.

        ::

            columns     0          T - 2·stride      T - stride           T
            row i       [ unused   [ skipped[i]: state[:, i] enters here  )  → answer
                        ^ segment  ^ segment         ^ segment

        Rows can begin only where a segment does. Each segment is one fused call for all rows, whatever lies in the
        unused columns; a row that begins later takes its own state there. So shapes never depend on values.

        Args:
            features: float [B, T, F].
            skipped: int64 [B], 0, T or T minus a multiple of `stride`.
            stride: distance between the starts of neighbouring windows.
            state: float32 [S, B, H].
        """
        steps = features.shape[1]
        if self.rnn is None or steps == 0:
            return state
        edges = sorted({0, steps, *range(steps - stride, 0, -stride)})
        running = state
        for first, end in pairwise(edges):
            if first:
                running = torch.where((skipped == first).view(1, -1, 1), state, running)
            running = self.forward(features[:, first:end], running)[1]
        return torch.where((skipped == steps).view(1, -1, 1), state, running)

    def _unpack(self, state: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return state if self.state_slots == 1 else (state[:1].contiguous(), state[1:].contiguous())

    def _pack(self, final: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        state = final if isinstance(final, Tensor) else torch.cat(final)
        return state.float()
