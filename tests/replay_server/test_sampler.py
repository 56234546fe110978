from __future__ import annotations

import json

import numpy as np
import pytest

from replay_server.sampler import ID_STRIDE, PRIORITY_FLOOR, WindowSampler
from tests.replay_server.validity import check_sampler


def sampler_with(priorities: list[float], prioritized: bool = True, exponent: float = 0.5) -> WindowSampler:
    sampler = WindowSampler(prioritized, exponent, seed=0)
    first = sampler.append(7, np.array(priorities, np.float32))
    sampler.set_drawable(first, first + len(priorities), True)
    return sampler


def test_probability_is_priority_to_the_exponent_over_its_sum() -> None:
    sampler = sampler_with([1.0, 4.0, 9.0], exponent=0.5)
    ids, probabilities = sampler.draw([600])
    total = 1.0 + 2.0 + 3.0
    assert probabilities.dtype == np.float64
    assert probabilities == pytest.approx(np.array([1.0, 2.0, 3.0])[ids] / total)
    # One draw from each of 600 equal shares; a window's share of them begins and ends within one.
    assert np.abs(np.bincount(ids) - [100, 200, 300]).max() <= 1


def test_each_batch_of_a_call_is_spread_over_all_windows_by_itself() -> None:
    sampler = sampler_with([1.0, 2.0, 3.0], exponent=1.0)
    ids, probabilities = sampler.draw([6, 0, 12])
    # One draw from each of 6, or 12, equal shares of 1 + 2 + 3.
    assert np.bincount(ids[:6]).tolist() == [1, 2, 3]
    assert np.bincount(ids[6:]).tolist() == [2, 4, 6]
    assert probabilities == pytest.approx(np.array([1.0, 2.0, 3.0])[ids] / 6)


def test_uniform_drawing_ignores_priorities() -> None:
    sampler = sampler_with([1.0, 4.0, 9.0], prioritized=False)
    assert sampler.update(np.array([0]), np.array([100.0])) == 0
    ids, probabilities = sampler.draw([30])
    assert probabilities == pytest.approx(1 / 3)
    assert np.abs(np.bincount(ids) - 10).max() <= 1


def test_windows_of_zero_priority_can_still_be_drawn() -> None:
    sampler = sampler_with([0.0, 0.0], exponent=1.0)
    ids, probabilities = sampler.draw([10])
    assert set(ids.tolist()) == {0, 1}
    assert probabilities == pytest.approx(0.5)
    sampler.update(np.array([1]), np.array([1.0]))
    assert sampler.draw([1])[1][0] == pytest.approx(1 / (1 + PRIORITY_FLOOR))


def test_updates_change_probabilities_and_late_ones_are_counted() -> None:
    sampler = sampler_with([1.0, 1.0, 1.0, 1.0], exponent=1.0)
    sampler.set_drawable(0, 2, False)
    sampler.forget_before(1)
    # 0 is forgotten, 1 can no longer be drawn, 9 was never given out
    assert sampler.update(np.array([0, 1, 2, 3, 9]), np.array([8.0, 8.0, 3.0, 1.0, 8.0])) == 3
    ids, probabilities = sampler.draw([4])
    assert ids.tolist() == [2, 2, 2, 3]
    assert probabilities.tolist() == [0.75, 0.75, 0.75, 0.25]
    check_sampler(sampler)


def test_new_windows_enter_at_the_largest_priority_that_slowly_fades() -> None:
    sampler = WindowSampler(True, 1.0, seed=0, enter_at_largest=True)

    def weight_of_a_new_one() -> float:
        """Its share of the total, against a window of known weight 1."""
        first = sampler.append(0, np.array([0.125], np.float32))  # the actor's own word does not count
        sampler.set_drawable(first, first + 1, True)
        sampler.update(np.array([0]), np.array([1.0]))
        ids, probabilities = sampler.draw([1_000])
        weight = float(probabilities[ids == first][0] / probabilities[ids == 0][0])
        sampler.set_drawable(first, first + 1, False)
        return weight

    sampler.append(0, np.array([9.0], np.float32))
    sampler.set_drawable(0, 1, True)
    assert weight_of_a_new_one() == pytest.approx(1.0)
    sampler.update(np.array([0]), np.array([4.0]))
    assert weight_of_a_new_one() == pytest.approx(4.0, rel=1e-4)
    one_by_one, at_once = (WindowSampler(True, 1.0, seed=0, enter_at_largest=True) for _ in range(2))
    for fading, size in ((one_by_one, 1), (at_once, 100)):
        fading.append(0, np.ones(1, np.float32))
        fading.set_drawable(0, 1, True)
        fading.update(np.array([0]), np.array([64.0]))
        for _ in range(10_000 // size):
            fading.update(np.zeros(size, np.int64), np.ones(size))
    largest = [fading.get_state()["largest"] for fading in (one_by_one, at_once)]
    assert largest == pytest.approx([64 * np.exp(-0.1)] * 2, rel=1e-4)


def test_a_restarted_sampler_gives_out_no_id_again_though_its_state_is_a_little_old() -> None:
    before = sampler_with([1.0, 1.0])
    state = before.get_state()
    late = before.append(7, np.array([1.0, 1.0], np.float32))
    after = WindowSampler(True, 0.5, seed=0)
    after.set_state(state)
    first = after.append(7, np.array([1.0, 1.0], np.float32))
    after.set_drawable(first, first + 2, True)
    assert after.update(np.array([late, late + 1]), np.array([9.0, 9.0])) == 2, "both come too late"
    check_sampler(after)


def test_ids_stay_unique_while_slots_are_reused_and_the_ring_grows() -> None:
    rng = np.random.default_rng(0)
    sampler = WindowSampler(True, 1.0, seed=0)
    living: dict[int, tuple[int, float]] = {}
    for owner in range(3000):
        priorities = (rng.random(int(rng.integers(1, 4))) + 0.5).astype(np.float32)
        first = sampler.append(owner, priorities)
        assert not set(range(first, first + len(priorities))) & set(living)
        living |= {first + k: (owner, float(p)) for k, p in enumerate(priorities)}
        sampler.set_drawable(first, first + len(priorities), True)
        limit = 1500 if owner < 1500 else 300
        if len(living) > limit:
            oldest = min(living)
            sampler.set_drawable(oldest, oldest + len(living) - limit, False)
            sampler.forget_before(oldest + len(living) - limit)
            living = {i: w for i, w in living.items() if i >= sampler.oldest_id}
        if owner % 300 == 0:
            check_sampler(sampler)
            ids, probabilities = sampler.draw([50])
            total = sum(weight for _, weight in living.values())
            assert sampler.owners(ids).tolist() == [living[i][0] for i in ids.tolist()]
            assert probabilities == pytest.approx([living[i][1] / total for i in ids.tolist()])
    assert sampler.population == len(living) == 300
    # A forgotten window's slot belongs to a living one now: its late priority must not reach that one.
    taken = min(living)
    forgotten = taken - 2048
    assert sampler._tree.capacity == 2048
    assert sampler.update(np.array([forgotten]), np.array([1e9])) == 1
    assert sampler.draw([50])[1].max() < 0.1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0, 1e300])
def test_refuses_a_bad_priority_and_changes_nothing(bad: float) -> None:
    sampler = sampler_with([1.0, 1.0])
    with pytest.raises(ValueError, match="priority of window 1"):
        sampler.update(np.array([0, 1]), np.array([5.0, bad]))
    assert sampler.draw([2])[1].tolist() == [0.5, 0.5]


def test_refuses_shapes_that_differ() -> None:
    with pytest.raises(ValueError, match="shape"):
        sampler_with([1.0]).update(np.array([0, 0]), np.array([1.0]))


def test_refuses_to_draw_from_nothing() -> None:
    with pytest.raises(ValueError, match="no window"):
        WindowSampler(True, 1.0, seed=0).draw([1])


def test_state_goes_on_drawing_the_same_and_never_gives_an_id_twice() -> None:
    one = sampler_with([1.0, 2.0, 3.0])
    one.draw([5])
    state = json.loads(json.dumps(one.get_state()))
    two = WindowSampler(True, 0.5, seed=99)
    two.set_state(state)
    first = two.append(0, np.array([1.0, 2.0, 3.0], np.float32))
    assert first == 3 + ID_STRIDE
    two.set_drawable(first, first + 3, True)
    assert (one.draw([20])[0] + first).tolist() == two.draw([20])[0].tolist()


def test_changes_are_flushed_before_they_pile_up() -> None:
    sampler = sampler_with([1.0])
    for _ in range(10_000):
        sampler.update(np.array([0]), np.array([2.0]))
    assert len(sampler._unflushed) < 4096
