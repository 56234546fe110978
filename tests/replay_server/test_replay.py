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
from drqn_dist.errors import FragmentError, ReplayStopped
from drqn_dist.interfaces import Held, WindowDraws
from replay_server.replay import Replay
from replay_server.shards import ShardAnswer
from tests.replay_server.fragments import Piece, cut_episode, make_fragment
from tests.replay_server.keeper import Keeper, chains_of
from tests.replay_server.validity import can_push, check_replay

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


def draw(replay: Replay, windows: int = 4) -> WindowDraws:
    """Waits for the rate limiter; all fragments that are read come along."""
    draws = replay.sample([windows], Held(), fresh_limit=0).draws
    assert draws is not None
    return draws


def take_in(replay: Replay, keeper: Keeper, windows: int = 0) -> ShardAnswer:
    """What a learner that keeps fragments is answered; it takes in the fresh ones."""
    answer = replay.sample([windows] if windows else [], keeper.held(0), keeper.fresh_limit, timeout_s=0.0)
    keeper.receive(answer.fresh, 0)
    return answer


def test_draws_are_ids_probabilities_and_chains_of_serial_numbers_without_gaps() -> None:
    replay = make_replay()
    for piece in pieces_of(30):
        replay.push(piece.payload)
    draws = draw(replay, 16)
    assert draws.ids.dtype == draws.starts.dtype == draws.chains.dtype == np.int64
    assert draws.probabilities.dtype == np.float64
    assert len(draws.ids) == len(draws.probabilities) == len(draws.starts) == len(draws.chains) == 16
    assert draws.chains.shape == (16, SHAPE.most_fragments)
    assert draws.population == 8  # starts 0, 4, ..., 28 of 30 steps
    assert draws.inserted_steps == 30
    assert len(set(draws.unheld_fragments)) == len(draws.unheld_fragments)
    payloads = Keeper().read(draws)
    for start, chain in zip(draws.starts.tolist(), chains_of(draws), strict=True):
        fragments = [decode(payloads[serial], MAX_BYTES) for serial in chain]
        for before, after in itertools.pairwise(fragments):
            assert before.first_step + before.num_steps == after.first_step
        assert fragments[0].first_step <= max(0, start - 2 - 1)
        last = fragments[-1].first_step + fragments[-1].num_steps
        assert last >= min(start + 4 + 2 - 1, 30)


def test_every_fragment_comes_once_in_order_of_arrival_and_no_more_at_once_than_wanted() -> None:
    replay, keeper = make_replay(), Keeper(fresh_limit=3)
    pieces = pieces_of(80, complete=False)
    arrived = [*pieces[4:], *pieces[:4]]
    for piece in arrived[:5]:
        replay.push(piece.payload)
    sizes = [len(take_in(replay, keeper).fresh.fragments) for _ in range(3)]
    for piece in [*arrived[5:], arrived[2]]:
        replay.push(piece.payload)
    sizes += [len(take_in(replay, keeper, windows=4).fresh.fragments) for _ in range(3)]
    assert sizes == [3, 5 - 3, 0, 3, 10 - 5 - 3, 0]
    (log,) = keeper.logs[0].values()
    assert log == list(enumerate(piece.payload for piece in arrived))


def test_only_fragments_that_are_read_and_not_kept_come_along_with_a_draw() -> None:
    replay = make_replay(priority_exponent=1.0)
    pieces = pieces_of(80, complete=False)
    for piece in pieces:
        replay.push(piece.payload)
    log = replay.sample([], Held(), 0).fresh.log
    # All of one window: its unroll starts at 8 * 4 = 32, it reads steps 32 - 3 ... 32 + 4, hence fragments 3 and 4.
    everyone = np.arange(replay.stats().windows)
    replay.update_priorities(everyone, np.where(everyone == 8, 1e6, 0.0))

    def came(held: Held, limit: int) -> list[int]:
        draws = replay.sample([2], held, limit).draws
        assert draws is not None
        assert draws.starts.tolist() == [32, 32]
        assert draws.chains.tolist() == [[3, 4]] * 2
        assert list(draws.unheld_fragments) == [pieces[serial].payload for serial in draws.unheld]
        return draws.unheld.tolist()

    assert came(Held(log, 0, 10), 0) == []
    assert came(Held(log, 4, 10), 0) == [3]  # 3 was driven out
    assert came(Held(log, 5, 10), 0) == [3, 4]
    assert came(Held(log, 0, 4), 0) == [4]  # 4 is new, but no fresh one was wanted
    assert came(Held(log, 0, 4), 1) == []  # 4 comes as the fresh one
    assert came(Held(log, 1, 2), 2) == [4]  # 2 and 3 come
    assert came(Held(log + 1, 0, 10), 4) == [4]  # of another log: 0 ... 3 come
    assert came(Held(log + 1, 4, 10), 10) == []  # all come
    assert came(Held(), 10) == []


def test_a_learner_that_fell_behind_goes_on_at_the_oldest_fragment_that_is_left() -> None:
    replay, keeper = make_replay(capacity_steps=32), Keeper()  # four fragments
    pieces = pieces_of(160, complete=False)
    for piece in pieces[:3]:
        replay.push(piece.payload)
    take_in(replay, keeper)
    for piece in pieces[3:10]:
        replay.push(piece.payload)
    answer = take_in(replay, keeper, windows=8)
    # 3, 4 and 5 came and went meanwhile; with them goes what is kept, which no window reads any more.
    assert answer.fresh.first == 6
    assert list(keeper.kept()) == [6, 7, 8, 9]
    assert answer.draws is not None
    assert answer.draws.unheld.tolist() == []
    assert keeper.read(answer.draws).keys() <= {6, 7, 8, 9}
    (log,) = keeper.logs[0].values()
    assert [serial for serial, _ in log] == [0, 1, 2, 6, 7, 8, 9]


def test_a_replay_that_is_started_again_begins_another_log() -> None:
    before, keeper = make_replay(), Keeper()
    for piece in pieces_of(40, complete=False):
        before.push(piece.payload)
    take_in(before, keeper)
    after = make_replay()
    after.set_state(json.loads(json.dumps(before.get_state())))
    new = pieces_of(24, env=1, complete=False)
    for piece in new:
        after.push(piece.payload)
    answer = take_in(after, keeper, windows=8)
    assert keeper.kept() == dict(enumerate(piece.payload for piece in new))
    assert answer.draws is not None
    assert answer.draws.unheld.tolist() == []
    assert len(keeper.logs[0]) == 2


def test_fresh_fragments_come_also_where_the_rate_limiter_allows_no_draw() -> None:
    replay, keeper = make_replay(min_steps=24), Keeper()
    first, second, third = pieces_of(24, complete=False)
    replay.push(first.payload)
    replay.push(second.payload)
    answer = take_in(replay, keeper, windows=4)
    assert answer.draws is None
    assert answer.tally.population == 3
    assert list(keeper.kept().values()) == [first.payload, second.payload]
    assert replay.stats().sampled_steps == 0
    replay.push(third.payload)
    assert take_in(replay, keeper, windows=4).draws is not None


def test_batches_of_one_call_are_each_spread_over_all_windows() -> None:
    replay = make_replay(prioritized=False)
    for piece in pieces_of(30):
        replay.push(piece.payload)
    draws = replay.sample([8, 16, 8], Held(), 0).draws  # of 8 windows
    assert draws is not None
    counts = [np.bincount(ids, minlength=8).tolist() for ids in np.split(draws.ids, [8, 24])]
    assert counts == [[1] * 8, [2] * 8, [1] * 8]
    assert replay.stats().sampled_steps == (8 + 16 + 8) * 4


def test_windows_become_drawable_when_all_they_read_is_there() -> None:
    replay = make_replay()
    first, second, third = pieces_of(24, complete=False)
    replay.push(second.payload)
    assert replay.stats().windows == 0  # 8 reads steps 5..12, 12 reads 9..16; steps 8..15 are there
    replay.push(first.payload)
    assert replay.stats().windows == 3  # 0, 4 and 8; 12 misses step 16
    replay.push(third.payload)
    assert replay.stats().windows == 5  # 12 and 16 as well; 20 reads 17..24
    check_replay(replay)


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
        check_replay(replay)
        stats, expected = replay.stats(), reference.stats()
        assert stats.duplicates == 2 * len(pieces)
        # What counts towards the ratio begins with the first window that can be drawn, which depends on the order.
        same = {"duplicates": 0, "counted_steps": 0}
        assert dataclasses.replace(stats, **same) == dataclasses.replace(expected, **same)


def test_an_evicted_fragment_stays_known() -> None:
    replay = make_replay(capacity_steps=32)
    pieces = pieces_of(80, complete=False)
    for piece in pieces:
        assert replay.push(piece.payload)
    assert not any(replay.push(piece.payload) for piece in pieces)
    assert replay.stats().inserted_steps - replay.stats().stored_steps == 80 - 32
    assert replay.stats().stored_steps == 32


def test_a_restarted_actor_continues_no_old_episode() -> None:
    replay = make_replay()
    old = pieces_of(16, complete=False)
    new = pieces_of(16, sequence_no=2**32)
    replay.push(old[1].payload)
    replay.push(new[0].payload)
    held = replay.stats().windows
    # Step 8 of the old episode does not follow step 7 of the new one, though the ids are the same.
    replay.push(new[1].payload)
    check_replay(replay)
    assert (held, replay.stats().windows) == (1, 4)


def test_eviction_by_bytes_keeps_within_the_bound() -> None:
    pieces = pieces_of(400, complete=False)
    size = max(len(piece.payload) for piece in pieces)
    replay = make_replay(capacity_bytes=5 * size)
    for piece in pieces:
        replay.push(piece.payload)
        assert replay.stats().stored_bytes <= 5 * size
    assert replay.stats().fragments >= 5
    check_replay(replay)


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
    replay = make_replay(capacity_steps=32, priority_exponent=1.0)
    for piece in pieces_of(30):
        replay.push(piece.payload)
    ids = np.arange(8)
    replay.update_priorities(ids, np.array([0, 0, 0, 1.0, 0, 0, 0, 3.0]))
    draws = draw(replay, 64)
    assert set(draws.starts.tolist()) == {3 * 4, 7 * 4}
    assert draws.probabilities.max() == pytest.approx(0.75, rel=1e-5)
    for piece in pieces_of(32, env=1):
        replay.push(piece.payload)
    replay.update_priorities(draws.ids, np.ones(64))
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


def test_push_waits_for_samples_and_a_duplicate_does_not() -> None:
    replay = make_replay(batch=2, tolerance=8)
    pieces = pieces_of(400, complete=False)
    taken = 0
    while can_push(replay):
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
        draw(replay, 2)
    for thread in threads:
        thread.join(DEADLINE_S)
    assert sorted(results) == [False, True]
    assert replay.stats().inserted_steps == 8 * (taken + 1)


def test_sample_waits_for_pushes() -> None:
    replay = make_replay(batch=2, tolerance=8, min_steps=24)
    pieces = pieces_of(400, complete=False)
    sampled: list[int] = []
    thread = threading.Thread(daemon=True, target=lambda: sampled.append(draw(replay, 2).inserted_steps))
    thread.start()
    assert not replay.can_sample()
    for piece in pieces[:3]:
        replay.push(piece.payload)
    thread.join(DEADLINE_S)
    assert sampled == [24]


def test_stop_ends_waiting_and_later_calls() -> None:
    replay = make_replay(batch=2, min_steps=24)
    ended = threading.Event()

    def sample() -> None:
        with pytest.raises(ReplayStopped):
            draw(replay, 2)
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
                ids = draw(replay, 2).ids
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
    check_replay(replay)
    stats = replay.stats()
    assert stats.inserted_steps == 4 * 400
    assert stats.duplicates == 4 * 400 // 8
    assert abs(stats.samples_per_insert - 1.0) <= 64 / (4 * 400 - 8)


def test_one_seed_draws_the_same_windows() -> None:
    def draws(seed: int) -> list[list[int]]:
        replay = make_replay(seed=seed)
        for piece in pieces_of(100):
            replay.push(piece.payload)
        return [draw(replay).ids.tolist() for _ in range(10)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)


def test_state_of_a_held_replay_goes_on_as_if_never_stopped() -> None:
    def run(with_resume: bool) -> tuple[list[list[int]], int]:
        replay = make_replay(samples_per_insert=0.3, tolerance=100)
        drawn = []
        for piece in pieces_of(800, complete=False):
            if not can_push(replay):
                continue
            replay.push(piece.payload)
            if with_resume:
                replay.set_state(json.loads(json.dumps(replay.get_state())))
            while replay.can_sample():
                drawn.append(draw(replay).ids.tolist())
        return drawn, replay.stats().sampled_steps

    assert run(True) == run(False)


def test_a_new_replay_resumes_counters_fills_up_first_and_gives_no_old_id() -> None:
    before = make_replay(min_steps=80, tolerance=16)
    for piece in pieces_of(160, complete=False):
        if can_push(before):
            before.push(piece.payload)
        while before.can_sample():
            ids = draw(before).ids
    before.push(pieces_of(8)[0].payload)
    state = json.loads(json.dumps(before.get_state()))
    after = make_replay(min_steps=80, tolerance=16)
    after.set_state(state)
    old, new = before.stats(), after.stats()
    for name in ("inserted_steps", "sampled_steps", "duplicates", "samples_per_insert"):
        assert getattr(new, name) == getattr(old, name)
    assert new.stored_steps == 0
    updates = 0
    for piece in pieces_of(160, complete=False):
        assert after.can_sample() is False or after.stats().stored_steps >= 80
        if can_push(after):
            after.push(piece.payload)
        while after.can_sample():
            assert draw(after).ids.min() > ids.max()
            updates += 1
    # 160 - 80 steps count since this start, one batch trains 4 * 4; the tolerance of 16 steps on either side.
    assert abs(updates * 16 - (160 - 80)) <= 2 * 16
    after.update_priorities(ids, np.ones(len(ids)))
    assert after.stats().late_priorities == len(ids)
