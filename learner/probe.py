"""Two measures of a learner's health, taken now and then: stale states, and policy churn."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from drqn_dist.config import TrainConfig, WindowShape
from drqn_dist.network.q_network import NetworkInput, QNetwork
from learner.feed import Batch, Past
from learner.frame_store import FrameStore, Gathered
from learner.windows import WindowTensors, read_windows, rows_of, stack_frames

PIECE = 256
"""Steps of an episode that are unrolled in one call."""


class Staleness(NamedTuple):
    """ΔQ = ‖q̂ - q‖₂ / max |q|, means over windows whose burn-in does not begin with their episode; NaN without any.

    q̂ are the network's values after a window's own burn-in, from its stored state or from zero; q those of the same
    network after all of the episode before; the maximum is over the actions and steps of the window. After R2D2
    (section 3 and figure 1), whose reference are the states that the actor had.
    """

    first: float
    """At the first trained step."""
    last: float
    """At the last one."""


class Probe:
    """Looks at a network between two updates. Used from the learner's thread."""

    def __init__(self, config: TrainConfig, network: QNetwork, store: FrameStore, piece: int = PIECE) -> None:
        self._piece = piece
        self._shape, self._stack = config.window, config.env.stack_frames
        self._network, self._store = network, store

    def windows_of(self, batch: Batch) -> WindowTensors:
        """What a batch holds, on the learner's device; valid for as long as it is kept."""
        return self._read(batch.places, batch.gathered, self._shape)

    def staleness(self, batch: Batch, windows: WindowTensors) -> Staleness:
        """Of the windows that come with their episode's past."""
        found = []
        values = self._values(windows, self._shape)[0] if batch.pasts else torch.zeros(())
        for past in batch.pasts or ():
            trained = int(windows.mask[past.window].sum())
            true, mine = self._true_values(past)[-trained:], values[past.window, :trained]
            off = torch.linalg.vector_norm(mine - true, dim=-1) / true.abs().max()
            found.append((float(off[0]), float(off[-1])))
        if not found:
            return Staleness(float("nan"), float("nan"))
        first, last = zip(*found, strict=True)
        return Staleness(sum(first) / len(first), sum(last) / len(last))

    def _true_values(self, past: Past) -> Tensor:
        """float32 [E, A], of an episode's steps from its first one on, unrolled in pieces that need little memory. All
        pieces have one length, the last one is filled up with its last row: for each shape that a CPU's convolutions
        meet, oneDNN keeps a program of a quarter of a megabyte."""
        history, steps = self._shape.history, len(past.places) - 4 - self._shape.history
        shape = replace(self._shape, burn_in=0, unroll=self._piece, n_step=0)
        state, values = self._network.initial_state(1), []
        for first in range(0, steps, self._piece):
            rows = torch.arange(first, first + self._piece + history).clamp(max=steps + history - 1)
            places = torch.cat([past.places[rows], torch.tensor([[0], [first], [0], [0]])])
            gathered = past.gathered
            if gathered is not None:
                gathered = Gathered(
                    gathered.frames[rows], gathered.actions[rows], gathered.rewards[rows], gathered.state
                )
            piece = self._read(places, gathered, shape)._replace(state=state)
            found, state = self._values(piece, shape)
            values.append(found[0])
        return torch.cat(values)[:steps]

    def greedy(self, windows: WindowTensors) -> Tensor:
        """Actions int64 [B, T] that the network of now prefers at the trained steps."""
        return self._values(windows, self._shape)[0].argmax(-1)

    @torch.no_grad()
    def _values(self, windows: WindowTensors, shape: WindowShape) -> tuple[Tensor, Tensor]:
        """float32 [B, T, A], after burn-in from the state that the windows hold, and the state after them."""
        network, burn_in = self._network, shape.burn_in
        end = burn_in + shape.unroll
        pictures = stack_frames(network.prepare(windows.frames), self._stack, shape).transpose(0, 1)
        inputs = NetworkInput(pictures, windows.last_actions, windows.last_rewards)
        with network.autocast(pictures.device):
            features = network.features(NetworkInput(*(x[:, :end] for x in inputs)))
            state = network.burn_in(features[:, :burn_in], windows.skipped, shape.stride, windows.state)
            return network.recur(features[:, burn_in:], state)

    def _read(self, places: Tensor, gathered: Gathered | None, shape: WindowShape) -> WindowTensors:
        device = self._store.device if gathered is None else next(self._network.parameters()).device
        places = places.to(device)
        if gathered is None:
            gathered = self._store.gather(*rows_of(places))
        else:
            gathered = Gathered(*(x.to(device) for x in gathered))
        return read_windows(gathered, places, shape, self._network.uses_last_action_and_reward)


def churn(before: Tensor, after: Tensor, mask: Tensor) -> float:
    """Share of trained steps at which one update changed the greedy action (policy churn, Schaul et al. 2022,
    arXiv:2206.00730).

    Args:
        before, after: int64 [B, T], greedy actions in windows that the update did not train on.
        mask: float32 [B, T], 1 on trained steps.
    """
    return float(((before != after) * mask).sum() / mask.sum())
