from __future__ import annotations

import numpy as np

from drqn_dist.config import WindowShape
from replay_server import windows
from tests.replay_server.fragments import random_shape
from tests.replay_server.naive import trained_steps, windows_of_episode


def starts_of_whole_episode(shape: WindowShape, steps: int) -> list[int]:
    low, high = windows.drawable_starts(shape, 0, steps, ended=True)
    return [start for start in range(0, steps, shape.stride) if low <= start < high]


def test_every_step_of_every_episode_is_trained_and_exactly_once_without_overlap() -> None:
    for seed in range(300):
        rng = np.random.default_rng(seed)
        shape = random_shape(rng)
        steps = int(rng.integers(1, 60))
        starts = starts_of_whole_episode(shape, steps)
        trained = [step for start in starts for step in trained_steps(shape, start, steps)]
        assert set(trained) == set(range(steps))
        if shape.stride == shape.unroll:
            assert len(trained) == steps


def test_a_window_that_trains_nothing_new_does_not_exist() -> None:
    shape = WindowShape(burn_in=0, unroll=8, n_step=1, stride=4, fragment=8, history=0)
    assert starts_of_whole_episode(shape, 8) == [0]  # [4, 8) is inside [0, 8)
    assert starts_of_whole_episode(shape, 9) == [0, 4]  # step 8 is new
    assert starts_of_whole_episode(shape, 12) == [0, 4]
    for seed in range(300):
        rng = np.random.default_rng(seed)
        shape = random_shape(rng)
        steps = int(rng.integers(1, 60))
        assert starts_of_whole_episode(shape, steps) == windows_of_episode(shape, steps)


def test_reach_and_most_fragments_bound_what_any_window_touches() -> None:
    for seed in range(300):
        shape = random_shape(np.random.default_rng(seed))
        back, ahead = windows.reach(shape)
        starts = np.arange(0, 40 * shape.fragment, shape.stride)
        first, end = windows.steps_read(shape, starts)
        owners, opens, closes = (steps // shape.fragment for steps in (starts, first, end - 1))
        assert (back, ahead) == ((owners - opens).max(), (closes - owners).max())
        touched = (closes - opens + 1).max()
        assert touched <= shape.most_fragments <= touched + 1


def test_reads_burn_in_and_history_but_nothing_before_the_episode() -> None:
    shape = WindowShape(burn_in=4, unroll=8, n_step=3, stride=8, fragment=16, history=2)
    first, end = windows.steps_read(shape, np.array([16, 0]))
    assert first.tolist() == [16 - 4 - 2, 0]
    assert end.tolist() == [16 + 8 + 3 - 1, 8 + 3 - 1]
