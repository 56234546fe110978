"""The Universal Scalability Law (Gunther 2007, Guerrilla Capacity Planning), fitted to measured throughput.

X(n) = X₁·n / (1 + σ(n − 1) + κn(n − 1)), where σ is the serial share of the work (Amdahl's law) and κ the cost of
keeping each pair of workers coherent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from drqn_dist.errors import ConfigError

NAMES = ("x1", "sigma", "kappa")
CONFIDENCE = 0.95

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """The law's parameters. σ or κ below 0 means that throughput grew faster than the law knows, or noise."""

    parameters: dict[str, float]
    intervals: dict[str, tuple[float, float]] | None
    """95 % confidence intervals; None without more measurements than parameters."""

    def throughput(self, actors: Sequence[float] | Floats) -> Floats:
        """float64 [N], predicted for so many actors."""
        return _law(np.asarray(actors, np.float64), *self.parameters.values())


def fit(actors: Sequence[int], throughput: Sequence[float]) -> Fit:
    """Least squares of relative errors (a machine's speed varies by a share of itself); the intervals are Student's,
    from the covariance at the optimum, and hold where errors are independent and alike.

    Args:
        actors, throughput: of each measurement; repeats give several for one number of actors.

    Raises:
        ConfigError: there are fewer than three different numbers of actors, or the law does not fit at all.
    """
    n, x = np.asarray(actors, np.float64), np.asarray(throughput, np.float64)
    if len(set(actors)) < len(NAMES):
        found = ", ".join(map(str, sorted(set(actors))))
        raise ConfigError(f"the law needs three numbers of actors, measured were {found}; add some to --actors")
    if not (np.isfinite(x).all() and (x > 0).all()):
        raise ConfigError(f"the law cannot be fitted to a throughput of {x.min():g}")
    start = [float(np.median(x[n == n.min()] / n.min())), 0.0, 0.0]
    exact = len(x) == len(NAMES)  # then there is nothing left to judge the errors by
    try:
        best, covariance = optimize.curve_fit(
            _law, n, x, p0=start, sigma=x, absolute_sigma=exact, method="trf", x_scale="jac"
        )
    except RuntimeError as error:
        raise ConfigError(f"the law does not fit these throughputs: {error}") from error
    parameters = dict(zip(NAMES, best.tolist(), strict=True))
    if exact:
        return Fit(parameters, None)
    reach = stats.t.ppf(0.5 + CONFIDENCE / 2, len(x) - len(NAMES)) * np.sqrt(np.diag(covariance))
    intervals = zip((best - reach).tolist(), (best + reach).tolist(), strict=True)
    return Fit(parameters, dict(zip(NAMES, intervals, strict=True)))


def _law(n: Floats, x1: Any, sigma: Any, kappa: Any) -> Floats:
    """float64 [N]"""
    result: Floats = x1 * n / (1 + sigma * (n - 1) + kappa * n * (n - 1))
    return result
