"""The replay: takes encoded fragments, answers batches of windows, never decompresses an observation."""

import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from drqn_dist.codec import FragmentHeader, decode_header
from drqn_dist.config import ReplayConfig, TrainConfig, WindowShape
from drqn_dist.errors import FragmentError
from drqn_dist.interfaces import SHARD_STRIDE, FragmentInbox, Fresh, Held, WindowDraws
from drqn_dist.seeding import derive_seed
from replay_server import windows
from replay_server.journal import Journal
from replay_server.rate_limiter import Balance, RateLimiter
from replay_server.sampler import WindowSampler
from replay_server.seen import SeenNumbers
from replay_server.shards import ShardAnswer, ShardTally
from replay_server.storage import FragmentStore, StoredFragment


@dataclass(frozen=True)
class ReplayStats:
    """What the replay holds and has done."""

    stored_steps: int
    stored_bytes: int
    """Compressed."""
    fragments: int
    windows: int
    """Windows that can be drawn now."""
    inserted_steps: int
    """Over the whole run, like all counts below."""
    sampled_steps: int
    counted_steps: int
    """Inserted steps that count towards the ratio; those that fill the replay to `min_steps` do not."""
    duplicates: int
    """Fragments that had come before."""
    missing: int
    """Fragments that have not come (yet) though a later one of the same environment has."""
    rejected: int
    """Pushes that were not a valid fragment."""
    late_priorities: int
    """Priorities that came back after their window was evicted."""

    @property
    def samples_per_insert(self) -> float:
        """Steps sampled per inserted step that counts."""
        return self.sampled_steps / max(1, self.counted_steps)


class Replay:
    """A sequence replay. All methods may be called from any thread.

    ::

        push:    bytes -> header -> known? -> rate limiter -> evict the oldest -> journal, store -> windows
        sample:  rate limiter -> sum tree -> ids -> serial numbers of the fragments, and of those only the bytes that
                 the learner does not have

    Contents are not part of its state: after `set_state` a new replay goes on counting, but fills up again first.
    """

    def __init__(
        self,
        config: ReplayConfig,
        window: WindowShape,
        batch_windows: int,
        tolerance_steps: int,
        seed: int,
        journal: Journal | None = None,
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
        capacity_steps = config.capacity_steps // shards
        self._config = config
        self._window = window
        self._back, self._ahead = windows.reach(window)
        self._batch_windows = batch_windows
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
        self._store = FragmentStore(
            capacity_steps, config.capacity_bytes // shards, window.fragment, shard * SHARD_STRIDE
        )
        self._sampler = WindowSampler(
            config.prioritized,
            config.priority_exponent,
            seed,
            enter_at_largest=config.initial_priority == "largest",
            first_id=shard * SHARD_STRIDE,
        )
        self._journal = journal
        self._seen: defaultdict[tuple[int, int], SeenNumbers] = defaultdict(SeenNumbers)
        self._counts = {"duplicates": 0, "rejected": 0, "late_priorities": 0}

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
            header = decode_header(payload, self._config.max_fragment_bytes)
            self._check_header(header)
            return self._push(payload, header)
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
        """Wakes all who wait in `push` or `sample`; they and all later callers get ReplayStopped."""
        self._limiter.stop()

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

    def _check_header(self, header: FragmentHeader) -> None:
        full = self._window.fragment
        steps = f"{header.num_steps} steps from episode step {header.first_step}"
        if header.first_step % full or header.num_steps > full:
            raise FragmentError(f"fragment has {steps}, but must have at most {full} from a multiple of {full}")
        if header.num_steps < full and not header.ends_episode:
            raise FragmentError(f"fragment has {steps}: shorter than {full} although its episode goes on")
        owned = windows.owned_windows(self._window, header.num_steps)
        if len(header.priorities) != owned:
            raise FragmentError(
                f"fragment has {len(header.priorities)} priorities, but {owned} windows start in its "
                f"{header.num_steps} steps at a stride of {self._window.stride}"
            )

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
            if self._journal is not None:
                self._journal.append(payload)
            first_window = self._sampler.append(self._store.next_serial, header.priorities)
            fragment = self._store.add(payload, header, first_window, len(header.priorities))
            self._refresh(fragment)
            seen.add(header.sequence_no)
            self._limiter.record_insert(header.num_steps, drawable=self._sampler.population > 0)
            return True

    def _make_room(self, num_steps: int, num_bytes: int) -> None:
        evicted = 0
        while not self._store.has_room(num_steps, num_bytes):
            fragment = self._store.pop_oldest()
            self._sampler.set_drawable(*fragment.drawable, drawable=False)
            self._sampler.forget_before(fragment.first_window + fragment.num_windows)
            self._refresh(fragment)
            evicted += 1
        if evicted and self._journal is not None:
            self._journal.evict(evicted)

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


class LocalSource:
    """A whole replay of the same process as a `WindowSource`, which does not wait for its rate limiter."""

    def __init__(self, replay: Replay, batch_windows: int) -> None:
        self._replay, self._batch_windows = replay, batch_windows

    def sample(self, batches: int, inbox: FragmentInbox) -> WindowDraws | None:
        answer = self._replay.sample([self._batch_windows] * batches, inbox.held(0), inbox.fresh_limit, timeout_s=0.0)
        inbox.receive(answer.fresh, 0)
        return answer.draws


def make_replay(config: TrainConfig, shard: int | None = None) -> Replay:
    """The replay that this configuration asks for, as a whole or as one of its `replay.shards` parts.

    Raises:
        ConfigError: its rate limiter would deadlock.
    """
    return Replay(
        config.replay,
        config.window,
        config.learner.batch_windows,
        config.rate_tolerance_steps,
        config.seed if shard is None else derive_seed(config.seed, "replay", shard),
        shard=shard or 0,
        shards=1 if shard is None else config.replay.shards,
        batches_per_draw=1 if shard is None else config.batches_per_draw,
    )


def total_stats(parts: Sequence[ReplayStats]) -> ReplayStats:
    """What the shards of one replay hold and have done together."""
    return ReplayStats(**{f.name: sum(getattr(part, f.name) for part in parts) for f in fields(ReplayStats)})
