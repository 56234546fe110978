from __future__ import annotations

import numpy as np
import pytest

from drqn_dist.errors import ConfigError
from drqn_dist.scaling.fits import Law, fit

ACTORS = [1, 2, 4, 8, 16, 32]


def noisy(seed: int, x1: float, sigma: float, kappa: float, repeats: int = 3) -> tuple[list[int], list[float]]:
    """Throughput by the law, each measurement 3 % off."""
    rng = np.random.default_rng(seed)
    n = np.repeat(ACTORS, repeats)
    x = x1 * n / (1 + sigma * (n - 1) + kappa * n * (n - 1)) * rng.normal(1, 0.03, len(n))
    return n.tolist(), x.tolist()


def test_amdahls_law_without_noise_is_found_exactly() -> None:
    found = fit("amdahl", [1, 2, 3], [100.0, 2 * 100 / 1.1, 3 * 100 / 1.2])
    assert found.parameters == pytest.approx({"x1": 100.0, "sigma": 0.1}, rel=1e-6)


def test_the_universal_law_without_noise_is_found_exactly() -> None:
    n = np.array(ACTORS)
    found = fit("usl", ACTORS, list(1_000 * n / (1 + 0.05 * (n - 1) + 0.001 * n * (n - 1))))
    assert found.parameters == pytest.approx({"x1": 1_000.0, "sigma": 0.05, "kappa": 0.001}, rel=1e-4)


@pytest.mark.parametrize(("law", "kappa"), [("amdahl", 0.0), ("usl", 0.002)])
def test_the_interval_holds_the_true_value_about_95_times_in_100(law: Law, kappa: float) -> None:
    held = {"x1": 0, "sigma": 0, "kappa": 0}
    truth = {"x1": 1_000.0, "sigma": 0.08, "kappa": kappa}
    for seed in range(200):
        found = fit(law, *noisy(seed, truth["x1"], truth["sigma"], kappa))
        assert found.intervals is not None
        for name, (low, high) in found.intervals.items():
            held[name] += low <= truth[name] <= high
    for name in found.parameters:
        # 190 of 200 expected, with a standard deviation of √(200 · 0.95 · 0.05) = 3.1
        assert 178 <= held[name] <= 199, (name, held[name])


def test_more_noise_gives_a_wider_interval() -> None:
    n, x = noisy(0, 1_000, 0.1, 0.0)
    rng = np.random.default_rng(1)
    wide = fit("amdahl", n, (np.array(x) * rng.normal(1, 0.1, len(x))).tolist())
    narrow = fit("amdahl", n, x)
    assert wide.intervals is not None
    assert narrow.intervals is not None
    assert np.ptp(wide.intervals["sigma"]) > 2 * np.ptp(narrow.intervals["sigma"])


@pytest.mark.parametrize(
    ("law", "actors", "words"),
    [
        ("amdahl", [2, 2, 2], "amdahl needs 2 numbers of actors, measured were 2; add some"),
        ("usl", [1, 2, 1, 2], "usl needs 3 numbers of actors, measured were 1, 2; add some"),
    ],
)
def test_fewer_points_than_parameters_are_refused(law: Law, actors: list[int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fit(law, actors, [100.0] * len(actors))


def test_as_many_measurements_as_parameters_give_no_interval() -> None:
    found = fit("amdahl", [1, 2], [100.0, 190.0])
    assert found.intervals is None
    assert found.throughput([1, 2]) == pytest.approx([100.0, 190.0])


def test_a_throughput_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="throughput of 0"):
        fit("amdahl", [1, 2, 4], [100.0, 0.0, 300.0])


def test_faster_than_linear_shows_as_a_negative_share() -> None:
    found = fit("amdahl", [1, 2, 4], [100.0, 210.0, 450.0])
    assert found.parameters["sigma"] < 0
