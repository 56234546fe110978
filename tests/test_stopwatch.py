from __future__ import annotations

import time

from drqn_dist.stopwatch import Stopwatch


def test_each_lap_begins_where_the_one_before_ended() -> None:
    began = time.perf_counter()
    watch = Stopwatch()
    deadline = time.process_time() + 0.05
    while time.process_time() < deadline:
        pass
    wall, cpu = watch.lap()
    second_wall, second_cpu = watch.lap()
    assert cpu >= 0.04
    assert second_cpu < 0.04
    assert 0 < wall + second_wall <= time.perf_counter() - began
