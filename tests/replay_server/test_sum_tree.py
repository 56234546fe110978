from __future__ import annotations

import numpy as np
import pytest

from replay_server.sum_tree import SumTree
from tests.replay_server.validity import check_tree


def naive_find(weights: list[float], target: float) -> int:
    running = 0.0
    for slot, weight in enumerate(weights):
        running += weight
        if target < running:
            return slot
    return max(slot for slot, weight in enumerate(weights) if weight > 0)


@pytest.mark.parametrize("capacity", [1, 2, 8, 64])
def test_finds_the_same_slots_as_a_running_sum_after_random_changes(capacity: int) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        tree = SumTree(capacity)
        weights = [0.0] * capacity
        for _ in range(20):
            slots = rng.integers(0, capacity, rng.integers(1, 9))
            # Small integers and zeros: sums are exact, so that both must agree to the slot.
            values = rng.integers(0, 4, len(slots)).astype(np.float64)
            tree.set(slots, values)
            for slot, value in zip(slots, values, strict=True):
                weights[slot] = float(value)
            check_tree(tree)
            assert tree.total == sum(weights)
            assert tree.get(np.arange(capacity)).tolist() == weights
            if tree.total:
                targets = np.append(rng.random(16) * tree.total, [0.0, tree.total])
                assert tree.find(targets).tolist() == [naive_find(weights, target) for target in targets]


def test_the_last_weight_counts_when_a_slot_is_set_twice_at_once() -> None:
    tree = SumTree(4)
    tree.set(np.array([2, 1, 2]), np.array([5.0, 1.0, 3.0]))
    assert tree.get(np.arange(4)).tolist() == [0.0, 1.0, 3.0, 0.0]
    assert tree.total == 1 + 3


def test_draws_each_slot_in_proportion_to_its_weight() -> None:
    tree = SumTree(4)
    tree.set(np.arange(4), np.array([1.0, 0.0, 2.0, 5.0]))
    # One draw from each of 8 equal shares of a total of 8: the counts are exact.
    for seed in range(10):
        drawn = tree.draw([8], np.random.default_rng(seed))
        assert np.bincount(drawn, minlength=4).tolist() == [1, 0, 2, 5]


def test_several_batches_are_each_drawn_from_equal_shares_of_the_whole() -> None:
    tree = SumTree(4)
    tree.set(np.arange(4), np.array([1.0, 0.0, 2.0, 5.0]))
    for seed in range(10):
        drawn = tree.draw([8, 0, 16, 8], np.random.default_rng(seed))
        batches = np.split(drawn, [8, 8, 24])
        counts = [np.bincount(batch, minlength=4).tolist() for batch in batches]
        assert counts == [[1, 0, 2, 5], [0, 0, 0, 0], [2, 0, 4, 10], [1, 0, 2, 5]]


def test_batches_drawn_together_are_those_drawn_one_after_the_other() -> None:
    tree = SumTree(64)
    tree.set(np.arange(64), np.random.default_rng(0).random(64))
    one_by_one, together = np.random.default_rng(1), np.random.default_rng(1)
    apart = np.concatenate([tree.draw([count], one_by_one) for count in (5, 1, 9)])
    assert tree.draw([5, 1, 9], together).tolist() == apart.tolist()


def test_single_draws_follow_the_weights_within_four_standard_deviations() -> None:
    tree = SumTree(4)
    tree.set(np.arange(4), np.array([1.0, 2.0, 3.0, 4.0]))
    rng = np.random.default_rng(0)
    count = 4_000
    drawn = np.array([tree.draw([1], rng)[0] for _ in range(count)])
    for slot, share in enumerate([0.1, 0.2, 0.3, 0.4]):
        deviation = (count * share * (1 - share)) ** 0.5
        assert abs((drawn == slot).sum() - count * share) < 4 * deviation


def test_never_draws_an_empty_slot_whatever_the_rounding() -> None:
    rng = np.random.default_rng(1)
    tree = SumTree(256)
    filled = rng.choice(256, 40, replace=False)
    tree.set(filled, 10.0 ** rng.integers(-30, 12, 40))
    edge = np.nextafter(tree.total, 0)
    assert np.isin(tree.find(np.array([0.0, edge, tree.total])), filled).all()
    for _ in range(200):
        assert np.isin(tree.draw([64], rng), filled).all()


@pytest.mark.parametrize("capacity", [0, -4, 3, 100])
def test_refuses_a_capacity_that_is_not_a_power_of_two(capacity: int) -> None:
    with pytest.raises(ValueError, match=str(capacity)):
        SumTree(capacity)


def test_the_check_notices_a_stale_sum() -> None:
    tree = SumTree(4)
    tree.set(np.array([1]), np.array([1.0]))
    tree._nodes[2] += 1
    with pytest.raises(AssertionError, match="stale"):
        check_tree(tree)
