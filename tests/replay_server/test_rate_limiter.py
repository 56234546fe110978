from __future__ import annotations

import json
import threading
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drqn_dist.errors import ConfigError, ReplayStopped
from replay_server.rate_limiter import RateLimiter

DEADLINE_S = 20.0


def filled(
    samples_per_insert: float = 2.0, min_steps: int = 10, tolerance: int = 10, insert: int = 5, sample: int = 10
) -> RateLimiter:
    limiter = RateLimiter(samples_per_insert, min_steps, tolerance, insert, sample)
    limiter.record_insert(min_steps)
    return limiter


@pytest.mark.parametrize(
    ("tolerance", "insert", "sample", "ratio", "needed"),
    [(31, 32, 8, 8.0, 32), (9, 1, 30, 3.0, 10), (0, 1, 1, 1.0, 1), (9, 1, 3, 0.3, 10)],
)
def test_refuses_a_tolerance_that_could_deadlock_and_says_what_would_do(
    tolerance: int, insert: int, sample: int, ratio: float, needed: int
) -> None:
    with pytest.raises(ConfigError, match=rf"\({tolerance}\) is too small.*set it to {needed} or more"):
        RateLimiter(ratio, 1, tolerance, insert, sample)
    RateLimiter(ratio, 1, needed, insert, sample)


def test_nothing_is_sampled_before_min_steps_and_filling_up_never_waits() -> None:
    limiter = RateLimiter(2.0, 100, 10, 5, 10)
    for _ in range(20):
        assert not limiter.can_sample(10)
        assert limiter.can_insert(5)
        limiter.record_insert(5)
    assert limiter.can_sample(10)


def test_steps_that_fill_the_replay_earn_no_burst_of_updates() -> None:
    limiter = filled(samples_per_insert=2.0, min_steps=1000, tolerance=10, insert=5, sample=10)
    updates = 0
    while limiter.can_sample(10):
        limiter.record_sample(10)
        updates += 1
    # Only the tolerance: 10 inserted steps at 2 samples each, in batches of 10.
    assert updates == 10 * 2 // 10


def test_nothing_is_sampled_while_nothing_can_be_drawn_and_inserting_goes_on() -> None:
    limiter = RateLimiter(2.0, 10, 10, 5, 10)
    for _ in range(100):
        limiter.record_insert(5, drawable=False)
        assert limiter.can_insert(5)
        assert not limiter.can_sample(10)
    limiter.record_insert(5, drawable=True)
    assert limiter.can_sample(10)
    assert limiter.counted_steps == 0


@settings(deadline=None)
@given(
    ratio=st.sampled_from([0.1, 0.3, 1.0, 1.7, 8.0, 32.5]),
    insert=st.integers(1, 40),
    sample=st.integers(1, 400),
    slack=st.integers(0, 50),
    turns=st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=60),
)
def test_one_side_can_always_proceed_and_debt_stays_within_tolerance(
    ratio: float, insert: int, sample: int, slack: int, turns: list[tuple[bool, int]]
) -> None:
    exact = Fraction(str(ratio))
    tolerance = max(insert, -int(-sample // exact)) + slack
    limiter = RateLimiter(ratio, 7, tolerance, insert, sample)
    for wants_insert, steps in turns:
        assert limiter.can_insert(insert) or limiter.can_sample(sample)
        if wants_insert and limiter.can_insert(min(steps, insert)):
            limiter.record_insert(min(steps, insert))
        elif limiter.can_sample(sample):
            limiter.record_sample(sample)
        debt = limiter.counted_steps * exact - limiter.sampled_steps
        assert abs(debt) <= tolerance * exact


@pytest.mark.parametrize("ratio", [0.3, 1.0, 8.0])
def test_two_threads_hold_the_ratio_in_the_long_run(ratio: float) -> None:
    insert, sample, tolerance, inserts = 4, 12, 64, 2000
    limiter = RateLimiter(ratio, 100, tolerance, insert, sample)
    inserted = threading.Event()

    def insert_all() -> None:
        for _ in range(inserts):
            with limiter.condition:
                assert limiter.await_insert(insert, DEADLINE_S)
                limiter.record_insert(insert)
        inserted.set()

    def sample_all() -> None:
        try:
            while limiter.await_sample(sample, DEADLINE_S):
                limiter.record_sample(sample)
        except ReplayStopped:
            pass

    threads = [threading.Thread(daemon=True, target=insert_all), threading.Thread(daemon=True, target=sample_all)]
    for thread in threads:
        thread.start()
    assert inserted.wait(DEADLINE_S)
    limiter.stop()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert limiter.inserted_steps == insert * inserts
    assert abs(limiter.sampled_steps - ratio * limiter.counted_steps) <= tolerance * ratio
    assert limiter.counted_steps == insert * inserts - 100


def test_waiting_ends_with_the_timeout() -> None:
    limiter = filled(samples_per_insert=2.0, min_steps=10, tolerance=10, insert=5, sample=10)
    limiter.record_insert(10)
    assert limiter.await_insert(5, timeout_s=0.02) is False
    limiter.record_sample(40)
    assert limiter.await_sample(10, timeout_s=0.02) is False


def test_a_waiting_insert_gives_way_to_another_reason() -> None:
    limiter = filled()
    limiter.record_insert(10)
    assert not limiter.can_insert(5)
    assert limiter.await_insert(5, DEADLINE_S, unless=lambda: True)


@pytest.mark.parametrize("side", ["insert", "sample"])
def test_stop_wakes_the_waiting_and_refuses_the_late(side: str) -> None:
    limiter = filled()
    limiter.record_insert(10) if side == "insert" else limiter.record_sample(20)
    wait = (lambda: limiter.await_insert(5)) if side == "insert" else (lambda: limiter.await_sample(10))
    stopped = threading.Event()

    def wait_for_stop() -> None:
        with pytest.raises(ReplayStopped):
            wait()
        stopped.set()

    thread = threading.Thread(daemon=True, target=wait_for_stop)
    thread.start()
    limiter.stop()
    assert stopped.wait(DEADLINE_S)
    thread.join(DEADLINE_S)
    with pytest.raises(ReplayStopped):
        wait()


def resumed(state: dict[str, object], **changes: float) -> RateLimiter:
    settings = {"samples_per_insert": 2.0, "min_steps": 1000, "tolerance_steps": 10, "insert_steps": 5}
    limiter = RateLimiter(sample_steps=10, **(settings | changes))  # type: ignore[arg-type]
    limiter.set_state(json.loads(json.dumps(state)))
    return limiter


def updates_allowed(limiter: RateLimiter) -> int:
    updates = 0
    while limiter.can_sample(10):
        limiter.record_sample(10)
        updates += 1
    return updates


def test_refilling_after_a_resume_earns_no_burst_of_updates() -> None:
    before = filled(min_steps=1000)
    for _ in range(50):
        before.record_insert(5)
        before.record_sample(10)
    after = resumed(before.get_state())
    assert not after.can_sample(10)  # nothing stored since this start, whatever was inserted before
    for _ in range(1000 // 5):
        assert after.can_insert(5)
        after.record_insert(5)
    assert after.inserted_steps == 1000 + 50 * 5 + 1000
    assert after.sampled_steps == 50 * 10
    assert updates_allowed(after) == updates_allowed(before) == 10 * 2 // 10


def test_debt_survives_a_resume_exactly() -> None:
    before = filled(min_steps=1000)
    before.record_insert(5)
    after = resumed(before.get_state())
    after.record_insert(1000)
    assert after.get_state()["debt"] == before.get_state()["debt"] == 5 * 2
    assert updates_allowed(after) == updates_allowed(before) == (10 * 2 + 5 * 2) // 10


def test_another_ratio_after_a_resume_neither_bursts_nor_deadlocks() -> None:
    before = filled(min_steps=1000)
    for _ in range(1000):
        before.record_insert(5)
        before.record_sample(10)
    for ratio in (1.0, 16.0):
        after = resumed(before.get_state(), samples_per_insert=ratio)
        after.record_insert(1000)
        assert updates_allowed(after) <= 10 * ratio // 10
    tighter = resumed(before.get_state() | {"debt": "1000000", "bounds": ["2", "1000000"]})
    tighter.record_insert(1000)
    assert updates_allowed(tighter) == 10 * 2 // 10


def test_shards_that_hear_of_each_other_hold_the_ratio_of_the_whole() -> None:
    """Two thirds of the inserts come to one limiter, and nine tenths of the samples: alone they would block."""
    limiters = [RateLimiter(2.0, 100, 50, 10, 10) for _ in range(2)]
    rng = np.random.default_rng(0)

    def tell() -> None:
        for mine, other in (limiters, limiters[::-1]):
            mine.set_elsewhere(other.balance())

    inserted = sampled = 0
    for _ in range(20_000):
        shard = int(rng.random() < 1 / 3)
        if limiters[shard].can_insert(10):
            limiters[shard].record_insert(10)
            inserted += 10
        shard = int(rng.random() < 1 / 10)
        if limiters[shard].can_sample(10):
            limiters[shard].record_sample(10)
            sampled += 10
        tell()
    assert sampled > 50_000
    assert abs(sampled - 2 * (inserted - 100)) <= 2 * 50 + 20
    assert abs(limiters[0].balance().debt) > 10 * 50  # what they could not bear alone


def test_a_shard_is_ready_when_all_together_hold_enough_and_one_can_be_drawn_from() -> None:
    first, second = (RateLimiter(1.0, 100, 50, 10, 10) for _ in range(2))
    first.record_insert(60)
    second.record_insert(60, drawable=False)
    assert not first.can_sample(10)
    assert not second.can_sample(10)
    first.set_elsewhere(second.balance())
    second.set_elsewhere(first.balance())
    assert first.can_sample(10)
    assert second.can_sample(10)
    for limiter in (first, second):
        limiter.record_insert(10)
    assert [limiter.counted_steps for limiter in (first, second)] == [10, 10]
