"""A sweep in two panels: throughput with the fitted law, and where the actors' time goes."""

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
    with figure(out, 2, (11, 4.8), 130) as (speed, time):
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

        table = rows(points)
        names = [f"{row['actors']}x{row['envs_per_actor']}" for row in table]
        below = np.zeros(len(table))
        for part in points[0].actor_time:
            shares = np.array([row[f"actor_time.{part}"] for row in table])
            time.bar(names, shares, bottom=below, label=part)
            below += shares
        time.set(xlabel="actors x environments", ylabel="share of the actors' time", ylim=(0, 1))
        time.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
