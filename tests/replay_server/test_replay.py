from __future__ import annotations

import dataclasses
import itertools
import json
import threading
from typing import Any

import numpy as np
import pytest

from drqn_dist.codec import decode, encode
from drqn_dist.config import ReplayConfig, WindowShape
from drqn_dist.errors import ConfigError, FragmentError, ReplayStopped
from replay_server.replay import Replay
from tests.replay_server.fragments import Piece, cut_episode, make_fragment

DEADLINE_S = 20.0
SHAPE = WindowShape(burn_in=2, unroll=4, n_step=2, stride=4, fragment=8, history=1)
MAX_BYTES = 2**20


def make_replay(
    shape: WindowShape = SHAPE, batch: int = 4, tolerance: int = 10**9, seed: int = 0, **changes: Any
) -> Replay:
    settings: dict[str, Any] = {"capacity_steps": 1000, "min_steps": 1, "samples_per_insert": 1.0}
    return Replay(ReplayConfig(**(settings | changes)), shape, batch, tolerance, seed)


def pieces_of(steps: int, env: int = 0, episode: int = 0, sequence_no: int = 0, complete: bool = True) -> list[Piece]:
    rng = np.random.default_rng([env, episode])
    return cut_episode(SHAPE, steps, rng, (0, env, episode), sequence_no, complete)


def test_a_sample_holds_each_fragment_once_and_spans_without_gaps() -> None:
    replay = make_replay(batch=16)
    for piece in pieces_of(30):
        replay.push(piece.payload)
    sample = replay.sample()
    assert len(set(sample.fragments)) == len(sample.fragments)
    assert sample.ids.dtype == np.int64
    assert sample.probabilities.dtype == np.float64
    assert len(sample.ids) == len(sample.probabilities) == len(sample.windows) == 16
    assert sample.population == 8  # starts 0, 4, ..., 28 of 30 steps
    assert sample.inserted_steps == 30
    for window in sample.windows:
        fragments = [decode(sample.fragments[span.fragment], MAX_BYTES) for span in window.spans]
        assert [f.first_step for f in fragments] == [span.first_step for span in window.spans]
        for before, after in itertools.pairwise(fragments):
            assert before.first_step + before.num_steps == after.first_step
        assert fragments[0].first_step <= max(0, window.unroll_start - 2 - 1)
        last = fragments[-1].first_step + fragments[-1].num_steps
        assert last >= min(window.unroll_start + 4 + 2 - 1, 30)


def test_windows_become_drawable_when_all_they_read_is_there() -> None:
    replay = make_replay()
    first, second, third = pieces_of(24, complete=False)
    replay.push(second.payload)
    assert replay.stats().windows == 0  # 8 reads steps 5..12, 12 reads 9..16; steps 8..15 are there
    replay.push(first.payload)
    assert replay.stats().windows == 3  # 0, 4 and 8; 12 misses step 16
    replay.push(third.payload)
    assert replay.stats().windows == 5  # 12 and 16 as well; 20 reads 17..24
    replay.check_valid()


def test_pushing_again_in_any_order_gives_the_identical_table() -> None:
    pieces = pieces_of(30) + pieces_of(17, env=1) + pieces_of(8, env=1, episode=1, sequence_no=3)
    reference = make_replay()
    for piece in pieces:
        assert reference.push(piece.payload) is True
    for seed in range(20):
        rng = np.random.default_rng(seed)
        replay = make_replay()
        accepted = [replay.push(pieces[i].payload) for i in rng.permutation(np.repeat(np.arange(len(pieces)), 3))]
        assert sum(accepted) == len(pieces)
        replay.check_valid()
        stats, expected = replay.stats(), reference.stats()
        assert stats.duplicates == 2 * len(pieces)
        # What counts towards the ratio begins with the first window that can be drawn, which depends on the order.
        same = {"duplicates": 0, "counted_steps": 0, "blocked_push_s": 0.0, "blocked_sample_s": 0.0}
        assert dataclasses.replace(stats, **same) == dataclasses.replace(expected, **same)


def test_an_evicted_fragment_stays_known() -> None:
    replay = make_replay(capacity_steps=32)
    pieces = pieces_of(80, complete=False)
    for piece in pieces:
        assert replay.push(piece.payload)
    assert not any(replay.push(piece.payload) for piece in pieces)
    assert replay.stats().stored_steps == 32
    assert replay.stats().evicted_steps == 80 - 32


def test_a_restarted_actor_continues_no_old_episode() -> None:
    replay = make_replay()
    old = pieces_of(16, complete=False)
    new = pieces_of(16, sequence_no=2**32)
    replay.push(old[1].payload)
    replay.push(new[0].payload)
    held = replay.stats().windows
    # Step 8 of the old episode does not follow step 7 of the new one, though the ids are the same.
    replay.push(new[1].payload)
    replay.check_valid()
    assert (held, replay.stats().windows) == (1, 4)


def test_eviction_by_bytes_keeps_within_the_bound() -> None:
    pieces = pieces_of(400, complete=False)
    size = max(len(piece.payload) for piece in pieces)
    replay = make_replay(capacity_bytes=5 * size)
    for piece in pieces:
        replay.push(piece.payload)
        assert replay.stats().stored_bytes <= 5 * size
    assert replay.stats().fragments >= 5
    replay.check_valid()


def test_memory_stays_flat_over_a_long_stream() -> None:
    replay = make_replay(capacity_steps=64)
    sequence_no = 0
    for episode in range(200):
        for piece in pieces_of(30, episode=episode, sequence_no=sequence_no):
            replay.push(piece.payload)
        sequence_no += 4
        replay.update_priorities(np.arange(3), np.ones(3))
    assert replay.stats().fragments <= 10
    assert len(replay._store._episodes) <= 3
    assert len(replay._seen) == 1
    assert len(replay._seen[0, 0]._edges) == 2
    assert len(replay._sampler._weights) == 1024


def test_new_priorities_change_what_is_drawn_and_late_ones_are_counted() -> None:
    replay = make_replay(batch=64, capacity_steps=32, priority_exponent=1.0)
    for piece in pieces_of(30):
        replay.push(piece.payload)
    ids = np.arange(8)
    replay.update_priorities(ids, np.array([0, 0, 0, 1.0, 0, 0, 0, 3.0]))
    sample = replay.sample()
    assert {w.unroll_start for w in sample.windows} == {3 * 4, 7 * 4}
    assert sample.probabilities.max() == pytest.approx(0.75, rel=1e-5)
    for piece in pieces_of(32, env=1):
        replay.push(piece.payload)
    replay.update_priorities(sample.ids, np.ones(64))
    assert replay.stats().late_priorities == 64
    with pytest.raises(ValueError, match="finite"):
        replay.update_priorities(np.array([9]), np.array([np.nan]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 4, "windows": 1}, "shorter than 8"),
        ({"num_steps": 9, "windows": 3}, "at most 8"),
        ({"num_steps": 8, "windows": 2, "first_step": 4}, "multiple of 8"),
        ({"num_steps": 8, "windows": 1}, "1 priorities, but 2 windows"),
        ({"num_steps": 5, "windows": 3, "terminated": True}, "3 priorities, but 2 windows"),
    ],
)
def test_refuses_a_fragment_that_does_not_fit_the_configuration(changes: dict[str, Any], message: str) -> None:
    replay = make_replay()
    with pytest.raises(FragmentError, match=message):
        replay.push(encode(make_fragment(**changes)))
    assert replay.stats().rejected == 1
    assert replay.stats().stored_steps == 0


def test_refuses_fragments_that_contradict_each_other_or_exceed_everything() -> None:
    replay = make_replay()
    for piece in pieces_of(16):
        replay.push(piece.payload)
    beyond = make_fragment(8, 2, first_step=16, sequence_no=2)
    with pytest.raises(FragmentError, match="contradict"):
        replay.push(encode(beyond))
    assert 2 not in replay._seen[0, 0]
    replay = make_replay()
    replay.push(encode(beyond))
    with pytest.raises(FragmentError, match="contradict"):
        replay.push(pieces_of(16)[1].payload)
    with pytest.raises(FragmentError, match="capacity_bytes"):
        make_replay(capacity_bytes=20).push(encode(beyond))
    with pytest.raises(FragmentError, match="checksum"):
        replay.push(encode(beyond)[:-1])
    with pytest.raises(FragmentError, match="max_fragment_bytes"):
        make_replay(max_fragment_bytes=20).push(encode(beyond))


def test_refuses_a_capacity_that_no_window_fits() -> None:
    # A window reads 2 + 1 + 4 + 2 - 1 = 8 steps, which can lie in two fragments.
    with pytest.raises(ConfigError, match=r"8 steps.*2 fragments.*= 16.*is 15"):
        make_replay(capacity_steps=15)
    make_replay(capacity_steps=16)


def test_push_waits_for_samples_and_a_duplicate_does_not() -> None:
    replay = make_replay(batch=2, tolerance=8)
    pieces = pieces_of(400, complete=False)
    taken = 0
    while replay.can_push():
        assert replay.push(pieces[taken].payload)
        taken += 1
    assert replay.push(pieces[0].payload) is False
    results: list[bool] = []
    threads = [
        threading.Thread(daemon=True, target=lambda: results.append(replay.push(pieces[taken].payload)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    assert results == []
    while replay.can_sample():
        replay.sample()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert sorted(results) == [False, True]
    assert replay.stats().inserted_steps == 8 * (taken + 1)


def test_sample_waits_for_pushes() -> None:
    replay = make_replay(batch=2, tolerance=8, min_steps=24)
    pieces = pieces_of(400, complete=False)
    sampled: list[int] = []
    thread = threading.Thread(daemon=True, target=lambda: sampled.append(replay.sample().inserted_steps))
    thread.start()
    assert not replay.can_sample()
    for piece in pieces[:3]:
        replay.push(piece.payload)
    thread.join(DEADLINE_S)
    assert sampled == [24]
    assert replay.stats().blocked_sample_s > 0


def test_stop_ends_waiting_and_later_calls() -> None:
    replay = make_replay(batch=2, min_steps=24)
    ended = threading.Event()

    def sample() -> None:
        with pytest.raises(ReplayStopped):
            replay.sample()
        ended.set()

    thread = threading.Thread(daemon=True, target=sample)
    thread.start()
    replay.stop()
    assert ended.wait(DEADLINE_S)
    thread.join(DEADLINE_S)
    with pytest.raises(ReplayStopped):
        replay.push(pieces_of(8)[0].payload)


def test_many_threads_leave_a_valid_table() -> None:
    replay = make_replay(batch=2, tolerance=64, capacity_steps=200)
    streams = [cut_episode(SHAPE, 400, np.random.default_rng(env), (0, env, 0), complete=False) for env in range(4)]

    def push_twice(pieces: list[Piece]) -> None:
        for piece in pieces:
            replay.push(piece.payload)
            replay.push(piece.payload)

    def learn() -> None:
        try:
            while True:
                ids = replay.sample().ids
                replay.update_priorities(ids, np.ones(len(ids)))
        except ReplayStopped:
            pass

    learner = threading.Thread(daemon=True, target=learn)
    pushers = [threading.Thread(daemon=True, target=push_twice, args=(pieces,)) for pieces in streams]
    for thread in (learner, *pushers):
        thread.start()
    for thread in pushers:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    replay.stop()
    learner.join(DEADLINE_S)
    replay.check_valid()
    stats = replay.stats()
    assert stats.inserted_steps == 4 * 400
    assert stats.duplicates == 4 * 400 // 8
    assert abs(stats.samples_per_insert - 1.0) <= 64 / (4 * 400 - 8)


def test_one_seed_draws_the_same_windows() -> None:
    def draws(seed: int) -> list[list[int]]:
        replay = make_replay(seed=seed)
        for piece in pieces_of(100):
            replay.push(piece.payload)
        return [replay.sample().ids.tolist() for _ in range(10)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)


def test_state_of_a_held_replay_goes_on_as_if_never_stopped() -> None:
    def run(with_resume: bool) -> tuple[list[list[int]], int]:
        replay = make_replay(samples_per_insert=0.3, tolerance=100)
        drawn = []
        for piece in pieces_of(800, complete=False):
            if not replay.can_push():
                continue
            replay.push(piece.payload)
            if with_resume:
                replay.set_state(json.loads(json.dumps(replay.get_state())))
            while replay.can_sample():
                drawn.append(replay.sample().ids.tolist())
        return drawn, replay.stats().sampled_steps

    assert run(True) == run(False)


def test_a_new_replay_resumes_counters_fills_up_first_and_gives_no_old_id() -> None:
    before = make_replay(min_steps=80, tolerance=16)
    for piece in pieces_of(160, complete=False):
        if before.can_push():
            before.push(piece.payload)
        while before.can_sample():
            ids = before.sample().ids
    before.push(pieces_of(8)[0].payload)
    state = json.loads(json.dumps(before.get_state()))
    after = make_replay(min_steps=80, tolerance=16)
    after.set_state(state)
    old, new = before.stats(), after.stats()
    for name in ("inserted_steps", "sampled_steps", "duplicates", "evicted_steps", "samples_per_insert"):
        assert getattr(new, name) == getattr(old, name)
    assert new.stored_steps == 0
    updates = 0
    for piece in pieces_of(160, complete=False):
        assert after.can_sample() is False or after.stats().stored_steps >= 80
        if after.can_push():
            after.push(piece.payload)
        while after.can_sample():
            assert after.sample().ids.min() > ids.max()
            updates += 1
    # 160 - 80 steps count since this start, one batch trains 4 * 4; the tolerance of 16 steps on either side.
    assert abs(updates * 16 - (160 - 80)) <= 2 * 16
    after.update_priorities(ids, np.ones(len(ids)))
    assert after.stats().late_priorities == len(ids)


class RecordingJournal:
    """Holds what a journal on disk would hold."""

    def __init__(self) -> None:
        self.held: list[bytes] = []

    def append(self, payload: bytes) -> None:
        self.held.append(payload)

    def evict(self, fragments: int) -> None:
        del self.held[:fragments]


def test_the_journal_follows_what_is_stored() -> None:
    journal = RecordingJournal()
    config = ReplayConfig(capacity_steps=32, min_steps=1)
    replay = Replay(config, SHAPE, 4, 10**9, 0, journal)
    for piece in pieces_of(78) * 2:
        replay.push(piece.payload)
        stored = [replay._store[s].payload for s in sorted(replay._store._fragments)]
        assert journal.held == stored
