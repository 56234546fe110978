"""Several replays that together are one: whom to ask for how many windows, and what their answers amount to.

Nobody stands between the shards. Whoever samples (the learner) keeps a ledger of what each shard told last, asks all
of them at once, and tells each what the others have counted; so the rate limiters of all shards see the whole replay's
ratio, as of the last call.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from drqn_dist.interfaces import Fresh, WindowDraws
from replay_server.rate_limiter import Balance


@dataclass(frozen=True)
class ShardTally:
    """What a shard tells of itself with every answer."""

    balance: Balance
    mass: float
    """Sum of the weights of its windows: priority ** exponent, or 1 each where windows are drawn uniformly."""
    population: int
    """Windows that can be drawn."""
    inserted_steps: int


@dataclass(frozen=True)
class ShardAnswer:
    """What a shard answers to a call for samples."""

    fresh: Fresh
    draws: WindowDraws | None
    """Its part of the batches; None if none was asked for, the rate limiter did not allow it in time, or nothing can
    be drawn here."""
    tally: ShardTally


@dataclass(frozen=True)
class Split:
    """Who draws how much in one call."""

    counts: npt.NDArray[np.int64]
    """int64 [K, batches], windows."""
    probabilities: npt.NDArray[np.float64]
    """float64 [K], with which each window of the call was given to a shard."""

    @property
    def windows(self) -> list[int]:
        """Of each shard, for all batches together."""
        totals: list[int] = self.counts.sum(1).tolist()
        return totals


class ShardLedger:
    """What one sampling process knows of K shards. Pure bookkeeping; used from one thread.

    Each window of a batch goes to shard k with probability mass_k / Σ mass, and there to window i with its weight_i /
    mass_k: together the draws of one replay that holds everything (but where windows enter at the largest priority of
    late, that is the shard's own). Where a mass has changed since it was told, draws
    lag behind that, but the probability reported is the product of the two that were really used, so importance
    weights stay exact.
    """

    def __init__(self, shards: int, seed: int) -> None:
        self._tallies: list[ShardTally | None] = [None] * shards
        self._rng = np.random.default_rng(seed)

    def update(self, shard: int, tally: ShardTally) -> None:
        """Takes in what a shard told."""
        self._tallies[shard] = tally

    def lose(self, shard: int) -> None:
        """A shard died: nothing can be drawn from it until it tells of itself again. What it counted stays counted."""
        tally = self._tallies[shard]
        if tally is not None:
            balance = replace(tally.balance, drawable=False)
            self._tallies[shard] = replace(tally, balance=balance, mass=0.0, population=0)

    def split(self, batches: int, windows: int) -> Split:
        """Gives every window of the next call to a shard; to none of them while nothing can be drawn anywhere."""
        masses = np.array([tally.mass if tally is not None else 0.0 for tally in self._tallies])
        if not masses.sum() > 0:
            return Split(np.zeros((len(masses), batches), np.int64), masses)
        probabilities = masses / masses.sum()
        counts = self._rng.multinomial(windows, probabilities, size=batches).T
        return Split(counts.astype(np.int64), probabilities)

    def elsewhere(self, shard: int) -> Balance | None:
        """What all other shards have counted; None until all have told."""
        total = Balance()
        for other, tally in enumerate(self._tallies):
            if tally is None:
                return None
            if other != shard:
                total += tally.balance
        return total

    def join(self, split: Split, parts: Sequence[WindowDraws | None]) -> WindowDraws:
        """The batches of one call, one after the other.

        Args:
            split: as it was asked for.
            parts: of each shard, its windows for all batches in turn; None where it had none to draw.
        """
        known = [tally for tally in self._tallies if tally is not None]
        drawn = [(part, shard) for shard, part in enumerate(parts) if part is not None]
        batches = split.counts.shape[1]
        batch_of = np.concatenate([np.repeat(np.arange(batches), split.counts[shard]) for _, shard in drawn])
        order = np.argsort(batch_of, kind="stable")
        probabilities = [part.probabilities * split.probabilities[shard] for part, shard in drawn]
        return WindowDraws(
            ids=np.concatenate([part.ids for part, _ in drawn])[order],
            probabilities=np.concatenate(probabilities)[order],
            starts=np.concatenate([part.starts for part, _ in drawn])[order],
            chains=np.concatenate([part.chains for part, _ in drawn])[order],
            population=sum(tally.population for tally in known),
            inserted_steps=sum(tally.inserted_steps for tally in known),
            # Ascending: a shard's serial numbers all lie above those of the shard before it.
            unheld=np.concatenate([part.unheld for part, _ in drawn]),
            unheld_fragments=tuple(payload for part, _ in drawn for payload in part.unheld_fragments),
        )
