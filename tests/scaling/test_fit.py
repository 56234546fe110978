from __future__ import annotations

import numpy as np
import pytest

from drqn_dist.errors import ConfigError
from drqn_dist.scaling.fit import fit

ACTORS = [1, 2, 4, 8, 16, 32]
TRUTH = {"x1": 1_000.0, "sigma": 0.08, "kappa": 0.002}


def noisy(seed: int, noise: float) -> tuple[list[int], list[float]]:
    """Three measurements of each number of actors by the law, each off by this share."""
    rng = np.random.default_rng(seed)
    n = np.repeat(ACTORS, 3)
    x = TRUTH["x1"] * n / (1 + TRUTH["sigma"] * (n - 1) + TRUTH["kappa"] * n * (n - 1)) * rng.normal(1, noise, len(n))
    return n.tolist(), x.tolist()


def test_the_law_without_noise_is_found_exactly() -> None:
    found = fit(*noisy(0, 0.0))
    assert found.parameters == pytest.approx(TRUTH, rel=1e-4)
    assert found.throughput([2]) == pytest.approx([2_000 / (1 + 0.08 + 0.002 * 2)])


def test_the_interval_holds_the_true_value_about_95_times_in_100() -> None:
    held = dict.fromkeys(TRUTH, 0)
    for seed in range(200):
        found = fit(*noisy(seed, 0.03))
        assert found.intervals is not None
        for name, (low, high) in found.intervals.items():
            held[name] += low <= TRUTH[name] <= high
    for name, count in held.items():
        # 190 of 200 expected, with a standard deviation of √(200 · 0.95 · 0.05) = 3.1
        assert 178 <= count <= 199, (name, count)


def test_more_noise_gives_a_wider_interval() -> None:
    wide, narrow = fit(*noisy(0, 0.1)).intervals, fit(*noisy(0, 0.03)).intervals
    assert wide is not None
    assert narrow is not None
    assert np.ptp(wide["sigma"]) > 2 * np.ptp(narrow["sigma"])


def test_fewer_numbers_of_actors_than_parameters_are_refused() -> None:
    with pytest.raises(ConfigError, match="three numbers of actors, measured were 1, 2; add some"):
        fit([1, 2, 1, 2], [100.0] * 4)


def test_as_many_measurements_as_parameters_give_no_interval() -> None:
    found = fit([1, 2, 4], [100.0, 190.0, 330.0])
    assert found.intervals is None
    assert found.throughput([1, 2, 4]) == pytest.approx([100.0, 190.0, 330.0])


def test_a_throughput_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="throughput of 0"):
        fit([1, 2, 4], [100.0, 0.0, 300.0])


def test_faster_than_linear_shows_as_a_negative_share() -> None:
    assert fit([1, 2, 3, 4], [100.0, 210.0, 330.0, 460.0]).parameters["sigma"] < 0
