from __future__ import annotations

import numpy as np
import pytest
import simpy

from drqn_dist.scaling.parts import Cores, Crowding, Limiter, Link, Meter, Server, Steps


def finished(env: simpy.Environment, cores: Cores, jobs: list[tuple[float, float]]) -> list[float]:
    """When each job (start, CPU seconds) ends."""
    ends = [0.0] * len(jobs)

    def job(index: int, start: float, seconds: float) -> Steps:
        yield env.timeout(start)
        yield cores.run(seconds)
        ends[index] = env.now

    for index, (start, seconds) in enumerate(jobs):
        env.process(job(index, start, seconds))
    env.run()
    return ends


def test_two_busy_processes_on_one_core_get_half_each() -> None:
    env = simpy.Environment()
    assert finished(env, Cores(env, 1), [(0.0, 1.0), (0.0, 1.0)]) == [2.0, 2.0]


def test_a_job_that_joins_shares_what_is_left() -> None:
    env = simpy.Environment()
    # Alone until 1, half each until the second one has had its 1 second at 3, alone again for the last second.
    assert finished(env, Cores(env, 1), [(0.0, 3.0), (1.0, 1.0)]) == pytest.approx([4.0, 3.0])


def test_with_a_core_each_nobody_waits() -> None:
    env = simpy.Environment()
    cores = Cores(env, 2)
    assert finished(env, cores, [(0.0, 1.0), (0.0, 2.0)]) == pytest.approx([1.0, 2.0])
    assert cores.busy() == pytest.approx(1.0 + 2.0)


def test_three_jobs_on_two_cores_advance_at_two_thirds() -> None:
    env = simpy.Environment()
    assert finished(env, Cores(env, 2), [(0.0, 2.0)] * 3) == pytest.approx([3.0] * 3)


def test_crowded_cores_are_slower_and_lonely_ones_are_not() -> None:
    env = simpy.Environment()
    assert finished(env, Cores(env, 2, Crowding(neighbours=0.25)), [(0.0, 1.0)]) == pytest.approx([1.0])
    env = simpy.Environment()
    assert finished(env, Cores(env, 2, Crowding(neighbours=0.25)), [(0.0, 1.0), (0.0, 1.0)]) == pytest.approx(
        [1.25, 1.25]
    )


def test_processes_that_take_turns_are_slower() -> None:
    crowding = Crowding(turns=0.2)
    env = simpy.Environment()
    assert finished(env, Cores(env, 2, crowding), [(0.0, 1.0)] * 2) == pytest.approx([1.0] * 2)
    env = simpy.Environment()  # four on two cores: half the time each, and a fifth more of it
    assert finished(env, Cores(env, 2, crowding), [(0.0, 1.0)] * 4) == pytest.approx([2.4] * 4)
    env = simpy.Environment()  # of three, two share a core and one has its own, in turn
    assert finished(env, Cores(env, 2, crowding), [(0.0, 1.0)] * 3) == pytest.approx([1.5 * (1 + 0.2 * 2 / 3)] * 3)
    env = simpy.Environment()
    both = Crowding(neighbours=0.5, turns=0.2)
    assert finished(env, Cores(env, 2, both), [(0.0, 1.0)] * 8) == pytest.approx([4 * 1.5 * 1.2] * 8)
    env = simpy.Environment()
    assert finished(env, Cores(env, 1, both), [(0.0, 1.0)] * 2) == pytest.approx([2.4] * 2)


@pytest.mark.parametrize("seed", range(5))
def test_sharing_equals_that_of_many_small_time_slices(seed: int) -> None:
    rng = np.random.default_rng(seed)
    jobs = [
        (round(float(start), 2), round(float(s), 2) + 0.01) for start, s in zip(*rng.uniform(0, 2, (2, 8)), strict=True)
    ]
    env = simpy.Environment()
    ends = finished(env, Cores(env, 3), jobs)
    left, now, slice_s, naive = [s for _, s in jobs], 0.0, 1e-4, [0.0] * len(jobs)
    while any(naive_end == 0.0 for naive_end in naive):
        running = [i for i, (start, _) in enumerate(jobs) if start <= now + 1e-9 and left[i] > 0]
        for i in running:
            left[i] -= slice_s * min(1.0, 3 / len(running))
            if left[i] <= 0:
                naive[i] = now + slice_s
        now += slice_s
    assert ends == pytest.approx(naive, abs=2e-3)


def test_a_server_with_random_arrivals_waits_as_queueing_theory_says() -> None:
    """M/D/1: the mean wait is ρ / (2 (1 − ρ)) services (Pollaczek & Khinchine)."""
    env = simpy.Environment()
    server, rng, waits = Server(env, Cores(env, 1)), np.random.default_rng(0), []

    def call() -> Steps:
        began = env.now
        yield from server.serve(1.0)
        waits.append(env.now - began - 1.0)

    def arrivals() -> Steps:
        for _ in range(20_000):
            yield env.timeout(float(rng.exponential(1 / 0.7)))
            env.process(call())

    env.process(arrivals())
    env.run()
    assert np.mean(waits) == pytest.approx(0.7 / (2 * (1 - 0.7)), rel=0.08)
    assert server.busy.seconds / env.now == pytest.approx(0.7, rel=0.02)


def test_a_server_takes_calls_one_after_the_other_even_with_cores_to_spare() -> None:
    env = simpy.Environment()
    server = Server(env, Cores(env, 8))
    for _ in range(3):
        env.process(server.serve(1.0))
    env.run()
    assert env.now == 3.0


@pytest.mark.parametrize(("insert_s", "sample_s"), [(0.01, 1.0), (1.0, 0.01)])
def test_the_rate_limiter_holds_the_ratio_whoever_is_faster(insert_s: float, sample_s: float) -> None:
    env = simpy.Environment()
    limiter, done = Limiter(env, ratio=8, tolerance_steps=100), {"inserted": 0, "sampled": 0}

    def side(enter: str, steps: int, name: str, seconds: float) -> Steps:
        while True:
            yield getattr(limiter, enter)(steps)
            done[name] += steps
            yield env.timeout(seconds)

    env.process(side("insert", 20, "inserted", insert_s))
    env.process(side("sample", 80, "sampled", sample_s))
    env.run(until=2_000)
    assert abs(8 * done["inserted"] - done["sampled"]) <= 8 * 100
    assert done["sampled"] / done["inserted"] == pytest.approx(8, rel=0.02)


def test_a_rate_limiter_driven_to_one_side_makes_that_side_wait_and_never_takes_back() -> None:
    env = simpy.Environment()
    limiter = Limiter(env, ratio=8, tolerance_steps=100)
    limiter.drive(0.9)
    assert limiter.insert(10).triggered
    waiting = limiter.insert(10)
    assert not waiting.triggered
    limiter.drive(0.5)
    assert not waiting.triggered
    limiter.drive(-1.0)
    assert waiting.triggered
    assert limiter.insert(180).triggered
    assert not limiter.insert(20).triggered


def test_without_a_ratio_inserts_never_wait() -> None:
    env = simpy.Environment()
    limiter = Limiter(env, ratio=0, tolerance_steps=0)
    assert all(limiter.insert(10**6).triggered for _ in range(10))


def test_messages_leave_a_link_one_after_the_other() -> None:
    env = simpy.Environment()
    link = Link(env, bytes_per_s=100, latency_s=0.5)
    assert link.delay(100) == 1.0 + 0.5
    assert link.delay(200) == 1.0 + 2.0 + 0.5
    env.run(until=10)
    assert link.delay(100) == 1.0 + 0.5
    assert link.busy_s == 1.0 + 2.0 + 1.0


def test_a_meter_counts_those_inside_also_before_they_leave() -> None:
    env = simpy.Environment()
    meter = Meter(env)
    meter.enter()
    env.run(until=2)
    meter.enter()
    env.run(until=5)
    assert meter.seconds == 5 + 3
    meter.leave()
    env.run(until=6)
    assert meter.seconds == 5 + 3 + 1
