"""The calls between roles in different processes, as the Protocols of `interfaces.py`.

A call to a role that is being started again is tried again; a role that stays away fails its caller.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError, RayTaskError

from drqn_dist.fragment import WindowBatch
from drqn_dist.interfaces import WeightSnapshot, WindowSample

RAY: Any = ray
"""Ray's annotations do not know all of its own options."""
PRIORITIES_IN_FLIGHT = 16
"""Calls with priorities sent but not acknowledged, before the learner waits."""
RETRY_S = 300.0
"""How long a call to a role that is being started again is tried again."""
FIRST_WEIGHTS_S = 60.0
"""How long an actor without any weights waits for an answer."""


class Patience:
    """Waits while a role is being started again, but not for ever. One for each call."""

    def __init__(self, seconds: float = RETRY_S) -> None:
        self._seconds = seconds
        self._until: float | None = None

    def wait(self, error: RayActorError) -> None:
        """Returns after a moment if it is worth another try, otherwise raises the error."""
        now = time.monotonic()
        if self._until is None:  # from the first failure on: the call itself may have waited long, with good reason
            self._until = now + self._seconds
        if not isinstance(error, ActorUnavailableError) or now > self._until:
            raise error
        time.sleep(0.2)  # Ray offers nothing to wait on here


class RemoteSink:
    """Pushes to the replay; at most `limit` are unacknowledged, and one that a failure made doubtful is sent again
    (the replay drops duplicates)."""

    def __init__(self, replay: Any, limit: int) -> None:
        self._replay, self._limit = replay, limit
        self._in_flight: deque[tuple[ray.ObjectRef[bool], bytes]] = deque()

    def push(self, payload: bytes) -> None:
        """
        Raises:
            FragmentError: the replay refused one of the fragments pushed so far.
        """
        while len(self._in_flight) >= self._limit:
            self._settle(*self._in_flight.popleft())
        self._in_flight.append((self._replay.push.remote(payload), payload))

    def _settle(self, ref: ray.ObjectRef[bool], payload: bytes) -> None:
        patience = Patience()
        while True:
            try:
                ray.get(ref)
                return
            except RayTaskError as error:
                raise error.cause or error from error
            except RayActorError as error:
                patience.wait(error)
                ref = self._replay.push.remote(payload)


class RemoteSource:
    """Draws from the replay, for one loader process."""

    def __init__(self, replay: Any) -> None:
        self._replay = replay

    def sample(self, count: int) -> list[WindowSample]:
        """The next so many batches of windows."""
        patience = Patience()
        while True:
            try:
                samples: list[WindowSample] = ray.get(self._replay.sample.remote(count))
                return samples
            except RayTaskError as error:
                raise error.cause or error from error
            except RayActorError as error:
                patience.wait(error)


class RemoteBatches:
    """The batches of one loader process. Used from one thread."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._arrived: deque[WindowBatch] = deque()

    def fill(self, out: WindowBatch) -> None:
        """Blocks until there is a batch, and copies it: what Ray gives is its store's own memory, which must not be
        written, and is only free again when nobody holds it."""
        patience = Patience()
        while not self._arrived:
            try:
                batches: list[WindowBatch] = ray.get(self._loader.load.remote())
                self._arrived.extend(batches)
            except RayTaskError as error:
                raise error.cause or error from error
            except ObjectLostError:  # its process died after it had answered
                continue
            except RayActorError as error:
                patience.wait(error)
        out.copy_from(self._arrived.popleft())


class RemotePriorities:
    """Sends priorities without waiting for them, up to a bound, those of several updates in one call. Those on their
    way to a replay that dies are lost with the windows they belong to."""

    def __init__(self, replay: Any, updates_per_call: int) -> None:
        self._replay, self._updates_per_call = replay, updates_per_call
        self._kept: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]] = []
        self._in_flight: deque[ray.ObjectRef[None]] = deque()

    def update_priorities(self, ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]) -> None:
        self._kept.append((ids, priorities))
        if len(self._kept) < self._updates_per_call:
            return
        while len(self._in_flight) >= PRIORITIES_IN_FLIGHT:
            try:
                ray.get(self._in_flight.popleft())
            except RayTaskError as error:
                raise error.cause or error from error
            except RayActorError:
                pass
        # Where a window was drawn twice, the replay keeps the later value.
        ids, priorities = (np.concatenate(arrays) for arrays in zip(*self._kept, strict=True))
        self._kept.clear()
        self._in_flight.append(self._replay.update_priorities.remote(ids, priorities))


class RemoteWeights:
    """Asks the learner for other weights, one request under way, without waiting — except for the very first."""

    def __init__(self, learner: Any) -> None:
        self._learner = learner
        self._request: ray.ObjectRef[list[ray.ObjectRef[WeightSnapshot]]] | None = None

    def latest(self, known_version: int) -> WeightSnapshot | None:
        if self._request is None:
            self._request = self._learner.latest.remote(known_version)
        wait_s = 0 if known_version >= 0 else FIRST_WEIGHTS_S
        if not ray.wait([self._request], timeout=wait_s)[0]:
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
    patience = Patience()
    while True:
        try:
            for ref in ray.get(learner.latest.remote(-1)):
                weights: WeightSnapshot = ray.get(ref)
                return weights
            raise ActorUnavailableError("the learner has no weights yet", None)
        except ObjectLostError:
            continue
        except RayActorError as error:
            patience.wait(error)
