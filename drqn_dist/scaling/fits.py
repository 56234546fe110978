"""Amdahl's law and the Universal Scalability Law, fitted to measured throughput.

Amdahl 1967: X(n) = X₁·n / (1 + σ(n − 1)), where σ is the serial share of the work.
Gunther 2007 (Guerrilla Capacity Planning): X(n) = X₁·n / (1 + σ(n − 1) + κn(n − 1)), where κ is the cost of keeping
each pair of workers coherent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from drqn_dist.errors import ConfigError

Law = Literal["amdahl", "usl"]
PARAMETERS: dict[Law, tuple[str, ...]] = {"amdahl": ("x1", "sigma"), "usl": ("x1", "sigma", "kappa")}
CONFIDENCE = 0.95

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """A law's parameters. σ or κ below 0 means that throughput grew faster than the law knows, or noise."""

    law: Law
    parameters: dict[str, float]
    intervals: dict[str, tuple[float, float]] | None
    """95 % confidence intervals; None without more measurements than parameters."""

    def throughput(self, n: Sequence[float] | Floats) -> Floats:
        """Predicted for so many actors."""
        return _model(np.asarray(n, np.float64), *self.parameters.values())


def fit(law: Law, actors: Sequence[int], throughput: Sequence[float]) -> Fit:
    """Least squares of relative errors (a machine's speed varies by a share of itself); the intervals are Student's,
    from the covariance at the optimum, and hold where errors are independent and alike.

    Args:
        actors, throughput: of each measurement; repeats give several for one number of actors.

    Raises:
        ConfigError: fewer different numbers of actors than the law has parameters; or it does not fit at all.
    """
    names = PARAMETERS[law]
    n, x = np.asarray(actors, np.float64), np.asarray(throughput, np.float64)
    if len(set(actors)) < len(names):
        found = ", ".join(map(str, sorted(set(actors))))
        raise ConfigError(f"{law} needs {len(names)} numbers of actors, measured were {found}; add some to --actors")
    if not (np.isfinite(x).all() and (x > 0).all()):
        raise ConfigError(f"{law} cannot be fitted to a throughput of {x.min():g}")
    start = [float(np.median(x[n == n.min()] / n.min())), *[0.0] * (len(names) - 1)]
    exact = len(x) == len(names)
    try:
        # With as many measurements as parameters there is nothing left to judge the errors by.
        best, covariance = optimize.curve_fit(
            _model, n, x, p0=start, sigma=x, absolute_sigma=exact, method="trf", x_scale="jac"
        )
    except RuntimeError as error:
        raise ConfigError(f"{law} does not fit these throughputs: {error}") from error
    parameters = dict(zip(names, best.tolist(), strict=True))
    if exact:
        return Fit(law, parameters, None)
    reach = stats.t.ppf(0.5 + CONFIDENCE / 2, len(x) - len(names)) * np.sqrt(np.diag(covariance))
    pairs = zip(parameters.items(), reach.tolist(), strict=True)
    return Fit(law, parameters, {name: (value - r, value + r) for (name, value), r in pairs})


def _model(n: Floats, x1: Any, sigma: Any, kappa: Any = 0.0) -> Floats:
    """float64 [N]"""
    result: Floats = x1 * n / (1 + sigma * (n - 1) + kappa * n * (n - 1))
    return result
