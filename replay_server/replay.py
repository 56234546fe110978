"""The replay: takes encoded fragments, answers batches of windows, never decompresses an observation."""

import errno
import secrets
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from drqn_dist.codec import FragmentHeader, decode_header
from drqn_dist.config import ReplayConfig, WindowShape
from drqn_dist.errors import FragmentError
from drqn_dist.interfaces import SHARD_STRIDE, Fresh, Held, WindowDraws
from replay_server import journal as journals
from replay_server import windows
from replay_server.journal import Journal
from replay_server.rate_limiter import Balance, RateLimiter
from replay_server.recovery import Recovery, Saved, no_journal, recover
from replay_server.sampler import WindowSampler
from replay_server.seen import SeenNumbers
from replay_server.segments import Record
from replay_server.shards import ShardAnswer, ShardTally
from replay_server.snapshot import Snapshot
from replay_server.stats import ReplayStats
from replay_server.storage import FragmentStore, StoredFragment


class Replay:
    """A sequence replay. All methods may be called from any thread.

    ::

        push:    bytes -> header -> known? -> rate limiter -> evict the oldest -> journal, store -> windows
        sample:  rate limiter -> sum tree -> ids -> serial numbers of the fragments, and of those only the bytes that
                 the learner does not have

    With a journal (`begin`), what it holds survives the process. Otherwise contents are not part of its state: after
    `set_state` a new replay goes on counting, but fills up again first.
    """

    def __init__(
        self,
        config: ReplayConfig,
        window: WindowShape,
        batch_windows: int,
        tolerance_steps: int,
        seed: int,
        shard: int = 0,
        shards: int = 1,
        batches_per_draw: int = 1,
    ) -> None:
        """
        Args:
            shard, shards: which of how many equal parts of the whole replay this one is.
            batches_per_draw: of one `sample`, at most.

        Raises:
            ConfigError: the rate limiter would deadlock.
        """
        self._config = config
        self._shards = shards
        self._window = window
        self._back, self._ahead = windows.reach(window)
        self._sample_steps = batch_windows * window.unroll
        self._limiter = RateLimiter(
            config.samples_per_insert,
            config.min_steps,
            tolerance_steps,
            window.fragment,
            batches_per_draw * self._sample_steps,
        )
        self._lock = self._limiter.condition
        self._log = secrets.randbits(62)
        """Names this log of fragments: a replay that is started again begins another one."""
        self._store = self._empty_store(shard * SHARD_STRIDE)
        self._sampler = WindowSampler(
            config.prioritized,
            config.priority_exponent,
            seed,
            enter_at_largest=config.initial_priority == "largest",
            first_id=shard * SHARD_STRIDE,
        )
        self._journal: Journal | None = None
        self._lacks_journal, self._missed = False, 0
        """Whether there should be one, and fragments that came meanwhile."""
        self._owner: BinaryIO | None = None
        """Held while this replay alone may write the journal."""
        self._seen: defaultdict[tuple[int, int], SeenNumbers] = defaultdict(SeenNumbers)
        self._counts = {"duplicates": 0, "rejected": 0, "late_priorities": 0}

    def begin(self, state: Mapping[str, Any] | None, folder: Path | None = None, exact: bool = False) -> str:
        """Goes on from what the journal in `folder` holds and from `get_state`'s counters, as far as there are any;
        from then on the journal is kept.

        Fragments newer than `state` are taken in as well, and count as inserted, but earn no samples: a learner that
        goes back to a checkpoint would otherwise have to catch up before actors may go on. With `exact` they are left
        out, since who goes back with the replay will push them again.

        Returns:
            What there is to say about it, or nothing. A journal that cannot be read or written is no reason not to
            begin, but to say so.
        """
        with self._lock:
            if state is not None:
                self.set_state(state)
            return "" if folder is None else self._begin_journal(folder, state, exact)

    def save(self) -> dict[str, Any]:
        """`get_state`, and in the journal's folder the priorities of the same moment, as far as the disk takes them."""
        with self._lock:
            state, snapshot = self.get_state(), self._snapshot()
        if self._journal is not None:
            self._journal.save(snapshot.to_bytes())
        return state

    def push(self, payload: bytes) -> bool:
        """Stores a fragment; waits while inserts are too far ahead of samples.

        Pushing the same fragment again is harmless: a duplicate changes nothing and does not wait.

        Returns:
            True if it was new, False if it was a duplicate.

        Raises:
            FragmentError: the bytes are no valid fragment, or do not fit the configuration; nothing was changed.
            ReplayStopped: `stop` was called.
        """
        try:
            return self._push(payload, self._header(payload))
        except FragmentError:
            with self._lock:
                self._counts["rejected"] += 1
            raise

    def can_sample(self) -> bool:
        """Whether a batch could be sampled without waiting."""
        return self._limiter.can_sample(self._sample_steps)

    def sample(
        self,
        counts: Sequence[int],
        held: Held,
        fresh_limit: int,
        timeout_s: float | None = None,
        call_steps: int | None = None,
        elsewhere: Balance | None = None,
    ) -> ShardAnswer:
        """Draws batches of windows with replacement, or a shard's part of them, as `shards.ShardLedger` splits them.

        Args:
            counts: windows of each batch; none of all of them only to exchange news.
            held: the fragments that the learner keeps.
            fresh_limit: at most so many that it does not have yet come along, the oldest first.
            timeout_s: how long to wait for the rate limiter; None: for as long as it takes.
            call_steps: steps that all shards together sample in this call, which the rate limiter must allow; None:
                this is the whole replay.
            elsewhere: what all other shards have counted; None leaves what was known before.

        Raises:
            ReplayStopped: `stop` was called.
        """
        count = sum(counts)
        with self._lock:
            if elsewhere is not None:
                self._limiter.set_elsewhere(elsewhere)
            steps = count * self._window.unroll if call_steps is None else call_steps
            allowed = self._limiter.await_sample(steps, timeout_s)
            fresh = self._fresh(held, fresh_limit)
            drawn = count > 0 and allowed and self._sampler.population > 0
            return ShardAnswer(fresh, self._draw(counts, held, fresh) if drawn else None, self._tally())

    def _fresh(self, held: Held, limit: int) -> Fresh:
        known = held.end if held.log == self._log else 0
        first = max(known, self._store.oldest_serial)
        end = min(self._store.next_serial, first + limit)
        return Fresh(self._log, first, tuple(self._store[serial].payload for serial in range(first, end)))

    def _draw(self, counts: Sequence[int], held: Held, fresh: Fresh) -> WindowDraws:
        window = self._window
        ids, probabilities = self._sampler.draw(counts)
        owners = self._sampler.owners(ids)
        self._limiter.record_sample(len(ids) * window.unroll)
        starts = self._store.window_starts(owners, ids, window.stride)
        first, end = windows.steps_read(window, starts)
        chains = self._store.chains(owners, first, end, window.most_fragments)
        read = np.unique(chains[chains >= 0])
        # What the learner keeps and what comes along are one run of serial numbers; where it has fallen far behind,
        # everything stored lies behind both.
        kept = held.first if held.log == fresh.log else fresh.first
        unheld = read[(read < kept) | (read >= fresh.first + len(fresh.fragments))]
        return WindowDraws(
            ids=ids,
            probabilities=probabilities,
            starts=starts,
            chains=chains,
            population=self._sampler.population,
            inserted_steps=self._limiter.inserted_steps,
            unheld=unheld,
            unheld_fragments=tuple(self._store[serial].payload for serial in unheld.tolist()),
        )

    def _tally(self) -> ShardTally:
        return ShardTally(
            balance=self._limiter.balance(),
            mass=self._sampler.mass(),
            population=self._sampler.population,
            inserted_steps=self._limiter.inserted_steps,
        )

    def update_priorities(self, ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.float64]) -> None:
        """Sets new priorities float64 [N] of windows int64 [N]; those of evicted windows are counted and ignored.

        Raises:
            ValueError: shapes differ, or a priority is negative or not finite; nothing was changed.
        """
        with self._lock:
            self._counts["late_priorities"] += self._sampler.update(ids, priorities)

    def stop(self) -> None:
        """Wakes all who wait in `push` or `sample`; they and all later callers get ReplayStopped. Closes the
        journal."""
        self._limiter.stop()
        with self._lock:
            journal, self._journal = self._journal, None
        if journal is not None:
            journal.close()
        if self._owner is not None:
            self._owner.close()
            self._owner = None

    def stats(self) -> ReplayStats:
        """A consistent snapshot."""
        with self._lock:
            return ReplayStats(
                stored_steps=self._store.steps,
                stored_bytes=self._store.bytes,
                fragments=len(self._store),
                windows=self._sampler.population,
                inserted_steps=self._limiter.inserted_steps,
                sampled_steps=self._limiter.sampled_steps,
                counted_steps=self._limiter.counted_steps,
                missing=sum(seen.missing for seen in self._seen.values()),
                journal_bytes=self._journal.disk_bytes if self._journal is not None else 0,
                journal_missed=self._missed + (self._journal.missed if self._journal is not None else 0),
                **self._counts,
            )

    def get_state(self) -> dict[str, Any]:
        """Counters and random state, for JSON."""
        with self._lock:
            return {
                "limiter": self._limiter.get_state(),
                "sampler": self._sampler.get_state(),
                "counts": dict(self._counts),
            }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from `get_state`'s counters and random state; what is stored here stays as it is."""
        with self._lock:
            self._limiter.set_state(state["limiter"])
            self._sampler.set_state(state["sampler"])
            self._counts = {name: int(state["counts"][name]) for name in self._counts}

    @property
    def keeps_journal(self) -> bool:
        """Whether what comes is written to a journal too."""
        return self._journal is not None

    def _begin_journal(self, folder: Path, state: Mapping[str, Any] | None, exact: bool) -> str:
        start_s, sync_s = time.monotonic(), self._config.journal_sync_s
        try:
            self._owner = journals.owned(folder)
            saved, scale = Saved.of(state), self._sampler.scale
            recovery = recover(folder, saved, exact, self._fitting_header, scale, sync_s)
        except OSError as error:
            if error.errno == errno.EBUSY:  # what it holds is there, and would be lost to this one
                raise
            self._lacks_journal = True
            return no_journal(folder, error)
        self._journal, problem = recovery.journal, recovery.problem
        records = self._take_back(recovery)
        if self._journal is None and not problem:
            try:
                snapshot = self._snapshot().to_bytes()
                self._journal = journals.write_anew(folder, self._log, sync_s, records, snapshot)
            except OSError as error:
                problem = no_journal(folder, error)
        self._lacks_journal = self._journal is None
        if self._journal is not None:
            # In serial mode, which repeats itself bit by bit, a snapshot belongs to its checkpoint.
            period_s = None if exact else journals.SNAPSHOT_PERIOD_S
            self._journal.keep(lambda: self._snapshot().to_bytes(), period_s)
        note = recovery.note(self._store.steps, len(self._store), time.monotonic() - start_s)
        return "; ".join(part for part in (note, problem) if part)

    def _take_back(self, recovery: Recovery) -> list[Record]:
        """Stores what comes back; answers the records of all that is stored now, as a journal of it alone has them."""
        if recovery.begin_at is not None:
            first_serial, first_window = recovery.begin_at
            self._store = self._empty_store(first_serial)
            self._sampler.begin_at(first_window)
        if recovery.journal is not None:
            self._log = recovery.journal.log
        self._seen.update({key: SeenNumbers(edges) for key, edges in recovery.snapshot.seen.items()})
        records = []
        for record, header in recovery.fragments:
            self._make_room(header.num_steps, len(record.payload))
            fragment = self._add(record.payload, header)
            weights = recovery.snapshot.weights_of(record.first_window, fragment.num_windows)
            self._sampler.set_weights(fragment.first_window, weights)
            self._seen[header.actor_id, header.env_id].add(header.sequence_no)
            records.append(record._replace(serial=fragment.serial, first_window=fragment.first_window))
        filled_steps = max(recovery.filled_steps, self._store.steps)
        self._limiter.refill(filled_steps, recovery.inserted_steps, drawable=self._sampler.population > 0)
        stored = records[len(records) - len(self._store) :]
        return [record._replace(live=live) for live, record in enumerate(stored, start=1)]

    def _snapshot(self) -> Snapshot:
        with self._lock:
            seen = {key: numbers.edges for key, numbers in self._seen.items()}
            stamp = (self._limiter.inserted_steps, self._limiter.sampled_steps)
            return Snapshot(self._sampler.oldest_id, stamp, self._sampler.scale, self._sampler.weights(), seen)

    def _empty_store(self, first_serial: int) -> FragmentStore:
        config, shards = self._config, self._shards
        return FragmentStore(
            config.capacity_steps // shards, config.capacity_bytes // shards, self._window.fragment, first_serial
        )

    def _header(self, payload: bytes) -> FragmentHeader:
        """
        Raises:
            FragmentError: the bytes are no valid fragment, or not cut as windows of this shape need it.
        """
        header = decode_header(payload, self._config.max_fragment_bytes)
        windows.check_cut(self._window, header)
        return header

    def _fitting_header(self, payload: bytes) -> FragmentHeader:
        """`_header` of a fragment of the journal, before anything is stored.

        Raises:
            FragmentError: also where it exceeds the whole capacity.
        """
        header = self._header(payload)
        self._store.check_fits(header, len(payload))
        return header

    def _push(self, payload: bytes, header: FragmentHeader) -> bool:
        with self._lock:
            seen = self._seen[header.actor_id, header.env_id]
            # Another thread may push the same fragment while this one waits.
            self._limiter.await_insert(header.num_steps, unless=lambda: header.sequence_no in seen)
            if header.sequence_no in seen:
                self._counts["duplicates"] += 1
                return False
            self._store.check_fits(header, len(payload))
            self._make_room(header.num_steps, len(payload))
            self._missed += self._lacks_journal
            if self._journal is not None and not self._journal.append(self._next_record(payload, header)):
                # After a restart this serial number will be another fragment's: learners must not take it for theirs.
                self._log = secrets.randbits(62) if self._log == self._journal.log else self._log
            self._add(payload, header)
            seen.add(header.sequence_no)
            self._limiter.record_insert(header.num_steps, drawable=self._sampler.population > 0)
            return True

    def _next_record(self, payload: bytes, header: FragmentHeader) -> Record:
        inserted = self._limiter.inserted_steps + header.num_steps
        return Record(self._store.next_serial, self._sampler.next_id, inserted, len(self._store) + 1, payload)

    def _add(self, payload: bytes, header: FragmentHeader) -> StoredFragment:
        first_window = self._sampler.append(self._store.next_serial, header.priorities)
        fragment = self._store.add(payload, header, first_window, len(header.priorities))
        self._refresh(fragment)
        return fragment

    def _make_room(self, num_steps: int, num_bytes: int) -> None:
        while not self._store.has_room(num_steps, num_bytes):
            fragment = self._store.pop_oldest()
            self._sampler.set_drawable(*fragment.drawable, drawable=False)
            self._sampler.forget_before(fragment.first_window + fragment.num_windows)
            self._refresh(fragment)
        if self._journal is not None:
            self._journal.evict_before(self._store.oldest_serial)

    def _refresh(self, changed: StoredFragment) -> None:
        """Finds anew which windows can be drawn, of all that may read a fragment that came or went."""
        episode = self._store.episode(changed)
        for index in range(changed.index - self._ahead, changed.index + self._back + 1):
            if index not in episode:
                continue
            owner = episode[index]
            (old_first, old_end), (first, end) = owner.drawable, self._drawable_windows(owner)
            if (old_first, old_end) != (first, end):
                self._sampler.set_drawable(old_first, old_end, drawable=False)
                self._sampler.set_drawable(first, end, drawable=True)
                owner.drawable = (first, end)

    def _drawable_windows(self, owner: StoredFragment) -> tuple[int, int]:
        """First id and end of the windows of a fragment that read only stored steps."""
        run = self._store.run_around(owner, self._back, self._ahead)
        low, high = windows.drawable_starts(self._window, *run)
        stride = self._window.stride
        first = min(max(0, -(-(low - owner.first_step) // stride)), owner.num_windows)
        end = min(max(first, -(-(high - owner.first_step) // stride)), owner.num_windows)
        return owner.first_window + first, owner.first_window + end
