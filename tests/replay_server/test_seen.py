from __future__ import annotations

import numpy as np

from replay_server.seen import SeenNumbers


def test_agrees_with_a_set_while_gaps_are_few() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        seen, naive = SeenNumbers(), set()
        for number in rng.integers(0, 60, 200).tolist():
            assert (number in seen) == (number in naive)
            seen.add(number)
            naive.add(number)
        assert [n for n in range(-2, 63) if n in seen] == sorted(naive)


def test_numbers_in_order_take_no_memory() -> None:
    seen = SeenNumbers()
    for number in range(10_000):
        seen.add(number)
    assert seen._edges == [0, 10_000]


def test_a_restarted_actor_with_a_higher_or_lower_base_is_not_mistaken_for_a_retry() -> None:
    seen = SeenNumbers()
    for number in range(2**32, 2**32 + 5):
        seen.add(number)
    assert 2 * 2**32 not in seen
    assert 0 not in seen
    seen.add(2 * 2**32)
    assert 2 * 2**32 in seen
    assert 2**32 + 4 in seen
    assert 2**32 + 5 not in seen


def test_what_was_overtaken_is_missing_until_it_comes_and_a_restarted_actor_leaves_nothing_missing() -> None:
    seen = SeenNumbers()
    for number in (3, 4, 7, 9):  # a replay that died begins in the middle
        seen.add(number)
    assert seen.missing == 2 + 1  # 5, 6 and 8
    seen.add(8)
    assert seen.missing == 2
    for base in (2**32, 5 * 2**32):
        seen.add(base)
    assert seen.missing == 2
    for number in (5, 6):
        seen.add(number)
    assert seen.missing == 0


def test_memory_is_bounded_and_only_the_oldest_gaps_are_forgotten() -> None:
    seen = SeenNumbers()
    limit = SeenNumbers.MAX_INTERVALS
    for number in range(0, 20 * limit, 2):
        seen.add(number)
    assert len(seen._edges) == 2 * limit
    newest_odd = 20 * limit - 3
    assert newest_odd not in seen
    assert 1 in seen
