"""The calls between roles in different processes, as the Protocols of `interfaces.py`.

A call to a role that is being started again is tried again, for as long as that takes: it is the supervisor who judges
whether a role stays away, and its callers are not to blame.
"""

import contextlib
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError, RayTaskError

from drqn_dist.interfaces import SHARD_STRIDE, FragmentInbox, Held, WeightSnapshot, WindowDraws
from drqn_dist.metrics import resident_bytes
from replay_server.shards import ShardAnswer, ShardLedger, Split
from replay_server.stats import ReplayStats

RAY: Any = ray
"""Ray's annotations do not know all of its own options."""
PRIORITIES_IN_FLIGHT = 16
"""Calls with priorities sent to a shard but not acknowledged, before the learner waits."""
RETRY_PERIOD_S = 0.2
ASK_S = 0.1
"""How long a shard may wait for its rate limiter before it answers that it must, and hears what the others counted."""
ANSWER_S = 5.0
"""A shard that takes longer than that to answer is left out until it does."""
FIRST_WEIGHTS_S = 60.0
"""How long an actor without any weights waits for an answer."""


def _node_id() -> str:
    # Asked without a Ray, it would start one.
    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


@dataclass(frozen=True)
class Pulse:
    """A sign of life of a role, and what it tells with it."""

    process: int = field(default_factory=os.getpid)
    node: str = field(default_factory=_node_id)
    resident_bytes: int = field(default_factory=resident_bytes)
    """Of its process."""
    pushes: int = 0
    """Actor: fragments in flight."""
    moves: int = 0
    """Actor, evaluator: batched steps since its process was started."""
    waits: bool = False
    """Actor, evaluator: for another role, so that standing still is no fault of its own."""
    slow_s: float = 0.0
    """Actor: how long it took to make and reset its environments; a reset may take as long again."""
    note: str = ""
    """Learner: where its frame store lies."""
    played: Any = None
    """Evaluator: how far its evaluation is (`Played`, which would import torch); None between two."""
    stats: ReplayStats | None = None
    """Replay: what it holds."""
    state: dict[str, Any] | None = None
    """Replay: what a new one would need to go on counting."""


def _unready(refs: list[Any]) -> list[Any]:
    return RAY.wait(refs, num_returns=len(refs), timeout=0)[1] if refs else []


def await_restart(error: RayActorError) -> None:
    """Returns after a moment if the role that failed is being started again.

    Raises:
        RayActorError: it is not.
    """
    if not isinstance(error, ActorUnavailableError):
        raise error
    time.sleep(RETRY_PERIOD_S)  # Ray offers nothing to wait on here


class RemoteSink:
    """Pushes to the replay; at most `limit` fragments are unacknowledged, and those that a failure made doubtful are
    sent again (the replay drops duplicates)."""

    def __init__(self, replay: Any, limit: int) -> None:
        self._replay, self._limit = replay, limit
        self.waits = False
        """For the replay."""
        self._in_flight: deque[tuple[ray.ObjectRef[None], list[bytes]]] = deque()
        self._fragments_in_flight = 0

    @property
    def unacknowledged(self) -> int:
        """Fragments that the replay has not acknowledged; may be asked from another thread."""
        sizes = {ref: len(call) for ref, call in list(self._in_flight)}
        return sum(sizes[ref] for ref in _unready(list(sizes)))

    def push(self, payloads: Sequence[bytes]) -> None:
        """Sends them in one call, or in several where that would be more than the limit.

        Raises:
            FragmentError: the replay refused one of the fragments pushed so far.
        """
        for first in range(0, len(payloads), self._limit):
            call = list(payloads[first : first + self._limit])
            while self._fragments_in_flight + len(call) > self._limit:
                self._settle()
            self._in_flight.append((self._replay.push.remote(call), call))
            self._fragments_in_flight += len(call)

    def _settle(self) -> None:
        """Waits until the oldest call is acknowledged."""
        self.waits = True
        try:
            self._await_oldest()
        finally:
            self.waits = False

    def _await_oldest(self) -> None:
        ref, call = self._in_flight.popleft()
        self._fragments_in_flight -= len(call)
        while True:
            try:
                ray.get(ref)
                return
            except RayTaskError as error:
                raise error.cause or error from error
            except RayActorError as error:
                await_restart(error)
                ref = self._replay.push.remote(call)


class RemoteSource:
    """Draws from the shards of the replay; a `WindowSource`. Used from one thread."""

    def __init__(self, shards: Sequence[Any], batch_windows: int, unroll_steps: int, seed: int) -> None:
        self._shards = shards
        self._batch_windows, self._unroll_steps = batch_windows, unroll_steps
        self._ledger = ShardLedger(len(shards), seed)
        self._lost: dict[int, ray.ObjectRef[ShardAnswer] | None] = {}
        """Shards that failed or keep silent, and the request that each has not answered."""

    def sample(self, batches: int, inbox: FragmentInbox) -> WindowDraws | None:
        """The windows of the next so many batches, or None for now. A shard that dies leaves the others to serve, until
        it is back.

        Raises:
            RayActorError: no shard comes back.
        """
        errors = [error for shard in list(self._lost) if (error := self._look_for(shard)) is not None]
        if len(self._lost) == len(self._shards):
            if errors:
                await_restart(errors[0])
            else:
                ray.wait([ref for ref in self._lost.values() if ref is not None], timeout=ASK_S)
            return None
        split = self._ledger.split(batches, self._batch_windows)
        parts = self._draw(split, inbox)
        return self._ledger.join(split, parts) if parts is not None and any(parts) else None

    def _draw(self, split: Split, inbox: FragmentInbox) -> list[WindowDraws | None] | None:
        """Asks every shard for its part, again where the rate limiter did not allow it in time. In every round those
        with nothing (left) to draw are asked too: so all hear what the others counted meanwhile.

        Returns:
            None if a shard was lost or emptied meanwhile, or the only one there is must wait; what others drew for
            this call is dropped.
        """
        parts: list[WindowDraws | None] = [None for _ in self._shards]
        left = {shard: windows for shard, windows in enumerate(split.windows) if windows}
        hear_only = not left
        first = True
        while left or first:
            steps = sum(left.values()) * self._unroll_steps
            asked = {}
            for shard in range(len(self._shards)):
                if shard not in self._lost:
                    if shard in left or hear_only:
                        counts = split.counts[shard].tolist() if shard in left else []
                        held, limit = inbox.held(shard), inbox.fresh_limit
                        asked[shard] = self._ask(shard, counts, held, limit, steps, ASK_S)
                    else:  # More fragments now could drive out what the windows read that it has given.
                        asked[shard] = self._ask(shard, [], Held(), 0, 0, 0.0)
            alone = len(self._shards) == 1  # nobody else could serve meanwhile
            _, silent = ray.wait(list(asked.values()), num_returns=len(asked), timeout=None if alone else ANSWER_S)
            complete, first = True, False
            for shard, ref in asked.items():
                try:
                    if ref in silent:
                        self._lose(shard, ref)
                        complete = False
                        continue
                    answer = ray.get(ref)
                except RayTaskError as error:
                    raise error.cause or error from error
                except (RayActorError, ObjectLostError):
                    self._lose(shard, None)
                    complete = False
                    continue
                self._ledger.update(shard, answer.tally)
                if shard in left or hear_only:
                    inbox.receive(answer.fresh, shard)
                if answer.draws is not None:
                    parts[shard] = answer.draws
                    del left[shard]
                elif shard in left and (alone or not answer.tally.population):
                    complete = False
            if not complete or not any(parts):  # what has come must not wait in memory for the rate limiter
                return None
            for shard in list(self._lost):
                self._look_for(shard)
        return parts

    def _ask(
        self, shard: int, counts: list[int], held: Held, limit: int, steps: int, timeout_s: float
    ) -> ray.ObjectRef[ShardAnswer]:
        elsewhere = self._ledger.elsewhere(shard)
        ref: ray.ObjectRef[ShardAnswer] = self._shards[shard].sample.remote(
            counts, held, limit, timeout_s, steps, elsewhere
        )
        return ref

    # What a lost shard may still answer is dropped, though its rate limiter counted it: at most one call's windows.
    def _lose(self, shard: int, unanswered: ray.ObjectRef[ShardAnswer] | None) -> None:
        self._ledger.lose(shard)
        self._lost[shard] = unanswered

    def _look_for(self, shard: int) -> RayActorError | None:
        """Takes a lost shard back if it answers by now; does not wait. Otherwise tells its error, if it gave one."""
        ref = self._lost[shard] or self._ask(shard, [], Held(), 0, 0, 0.0)
        self._lost[shard] = ref
        if ray.wait([ref], timeout=0)[0]:
            try:
                self._ledger.update(shard, ray.get(ref).tally)
                del self._lost[shard]
            except RayTaskError as error:
                raise error.cause or error from error
            except ObjectLostError:
                self._lost[shard] = None
            except RayActorError as error:
                self._lost[shard] = None
                return error
        return None


class RemotePriorities:
    """Sends priorities to the shards that hold the windows, without waiting for them, up to a bound, those of several
    updates in one call. Those on their way to a shard that dies are lost with the windows they belong to."""

    def __init__(self, shards: Sequence[Any], updates_per_call: int) -> None:
        self._shards, self._updates_per_call = shards, updates_per_call
        self._kept: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]] = []
        self._in_flight: deque[ray.ObjectRef[None]] = deque()

    @property
    def unacknowledged(self) -> int:
        """Calls that no shard has acknowledged."""
        return len(_unready(list(self._in_flight)))

    def update_priorities(self, ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]) -> None:
        self._kept.append((ids, priorities))
        if len(self._kept) < self._updates_per_call:
            return
        while len(self._in_flight) > (PRIORITIES_IN_FLIGHT - 1) * len(self._shards):  # one more for each may follow
            try:
                ray.get(self._in_flight.popleft())
            except RayTaskError as error:
                raise error.cause or error from error
            except RayActorError:
                pass
        # Where a window was drawn twice, the replay keeps the later value.
        ids, priorities = (np.concatenate(arrays) for arrays in zip(*self._kept, strict=True))
        self._kept.clear()
        owners = ids // SHARD_STRIDE
        for shard in np.unique(owners):
            theirs = owners == shard
            call = self._shards[shard].update_priorities.remote(ids[theirs], priorities[theirs])
            self._in_flight.append(call)


class RemoteWeights:
    """Asks the learner for other weights without waiting, except for the very first ones. One request at most is under
    way; the first call after its answer has come takes it, and the call after that asks anew."""

    def __init__(self, learner: Any) -> None:
        self._learner = learner
        self.waits = False
        """For the learner, or for weights on their way."""
        self._request: ray.ObjectRef[list[ray.ObjectRef[WeightSnapshot]]] | None = None

    @property
    def pending(self) -> bool:
        return self._request is not None

    def latest(self, known_version: int) -> WeightSnapshot | None:
        if self._request is None:
            self._request = self._learner.latest.remote(known_version)
        self.waits = True
        try:
            return self._answer(FIRST_WEIGHTS_S if known_version < 0 else 0)
        finally:
            self.waits = False

    def _answer(self, timeout_s: float) -> WeightSnapshot | None:
        assert self._request is not None
        if not ray.wait([self._request], timeout=timeout_s)[0]:
            return None
        request, self._request = self._request, None
        # A learner that is just being started again answers later; the old weights serve until then.
        with contextlib.suppress(RayActorError, ObjectLostError):
            for ref in ray.get(request):
                return ray.get(ref)
        return None


def newest_weights(learner: Any) -> WeightSnapshot:
    """The learner's newest weights; waits for one that is being started again.

    Raises:
        RayActorError: it does not come back.
    """
    while True:
        try:
            for ref in ray.get(learner.latest.remote(-1)):
                weights: WeightSnapshot = ray.get(ref)
                return weights
            raise ActorUnavailableError("the learner has no weights yet", None)
        except ObjectLostError:
            continue
        except RayActorError as error:
            await_restart(error)
