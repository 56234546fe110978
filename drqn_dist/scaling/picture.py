"""A sweep as a picture: throughput with the fitted law."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from drqn_dist.experiments.plot import figure
from drqn_dist.scaling.fit import Fit
from drqn_dist.scaling.points import Point
from drqn_dist.scaling.report import curves, fit_curve, rows


def draw(points: Sequence[Point], out: Path) -> None:
    """Writes the PNG `out`.

    Raises:
        RunFolderError: it cannot be written.
    """
    with figure(out, (7, 4.8), 130) as (speed,):
        for label, curve in curves(points).items():
            table = rows(curve)
            actors = [row["actors"] for row in table]
            middle = np.array([row["agent_steps_per_s"] for row in table])
            low, high = np.array([row["spread"] for row in table]).T
            drawn = speed.errorbar(actors, middle, yerr=[middle - low, high - middle], fmt="o", capsize=3, label=label)
            if isinstance(law := fit_curve(curve), Fit):
                grid = np.linspace(min(actors), max(actors), 100)
                speed.plot(grid, law.throughput(grid), color=drawn.lines[0].get_color(), linewidth=1)
        speed.set(xlabel="actors", ylabel="agent steps per second (lines: Universal Scalability Law)", ylim=(0, None))
        speed.legend(frameon=False)
