"""A study's pictures: learning curves, the same weights elsewhere, and games by the clock."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from drqn_dist.experiments.plot import COLOURS, PANELS_ACROSS, Points, figure, mean_curve
from drqn_dist.studies.finished import Finished

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_curves(finished: Finished, out: Path) -> None:
    """Greedy evaluations against agent steps: a line for each arm, its shade from the lowest to the highest seed.

    Raises:
        RunFolderError: `out` cannot be written.
    """
    from matplotlib.ticker import EngFormatter  # takes a second to import

    study = finished.study
    with _panels(out, study.panels, "mean return, greedy evaluation") as drawn:
        for panel, axes in drawn.items():
            for index, arm in enumerate(study.arms):
                evaluated = [np.array(o.evaluations)[:, ::2] for o in finished.of(panel, arm) if o.evaluations]
                if evaluated:
                    _draw_arm(axes, arm, evaluated, index)
            styles = itertools.cycle(("--", ":", "-."))
            for (name, value), style in zip(study.references.get(panel, {}).items(), styles, strict=False):
                axes.axhline(value, color="grey", linestyle=style, linewidth=1, label=name)
            axes.set_xlabel("agent steps")
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def draw_elsewhere(finished: Finished, out: Path) -> None:
    """Mean return of the same weights at each place, a line for each arm; bars span the seeds.

    Raises:
        RunFolderError: `out` cannot be written.
    """
    places = finished.places
    with _panels(out, finished.study.panels, "mean return of the same weights", "trained: ") as drawn:
        for panel, axes in drawn.items():
            for index, arm in enumerate(finished.study.arms):
                known = {at: means for at, means in enumerate(finished.elsewhere(panel, arm)) if means}
                if known:
                    middle = np.array([np.mean(means) for means in known.values()])
                    down = middle - [min(means) for means in known.values()]
                    up = [max(means) for means in known.values()] - middle
                    colour = _colour(index)
                    axes.errorbar(
                        list(known), middle, [down, up], color=colour, marker="o", markersize=4, capsize=3, label=arm
                    )
            axes.set_xticks(range(len(places)), places)


def draw_by_the_clock(finished: Finished, out: Path) -> None:
    """Training games (lines) and evaluations (dots) of every run against minutes, on a logarithmic axis, as runs may
    differ a hundredfold.

    Raises:
        RunFolderError: `out` cannot be written.
    """
    with _panels(out, finished.study.panels, "mean return: training —, evaluations •") as drawn:
        for panel, axes in drawn.items():
            for index, arm in enumerate(finished.study.arms):
                runs = finished.of(panel, arm)
                for outcome in runs:
                    trained, evaluated = (np.array(c).reshape(-1, 3) for c in (outcome.training, outcome.evaluations))
                    axes.plot(trained[:, 1], trained[:, 2], color=_colour(index), linewidth=1.6)
                    axes.scatter(evaluated[:, 1], evaluated[:, 2], s=9, color=_colour(index))
                if runs:
                    axes.plot([], [], color=_colour(index), marker="o", markersize=3, label=arm)
            for level in finished.study.levels:
                axes.axhline(level, color="grey", linestyle="--", linewidth=1)
            axes.set_xscale("log")
            axes.set_xlabel("minutes")


@contextmanager
def _panels(out: Path, panels: list[str], ylabel: str, title: str = "") -> Iterator[dict[str, "Axes"]]:
    """Axes for each panel, to be drawn on in this context; what they share is added at its end."""
    with figure(out, (4.5, 3.6), 110, len(panels)) as drawn:
        yield dict(zip(panels, drawn, strict=True))
        for panel, axes in zip(panels, drawn, strict=True):
            axes.set_title(title + panel if len(panels) > 1 else panel, fontsize=10)
            axes.grid(alpha=0.25, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            if axes.get_legend_handles_labels()[0]:  # something has finished there
                axes.legend(frameon=False, fontsize=8)
        for axes in drawn[::PANELS_ACROSS]:
            axes.set_ylabel(ylabel)


def _draw_arm(axes: "Axes", arm: str, curves: list[Points], index: int) -> None:
    style = ("-", "--", ":")[index // len(COLOURS) % 3]
    # The first arms lie on top and are drawn thickest, so that curves which coincide are all seen.
    width, above = 2.6 if index == 0 else 1.6, 3 - 0.1 * index
    grid, mean, lowest, highest = mean_curve(curves)
    label = f"{arm} ({len(curves)})" if len(curves) > 1 else arm
    if len(curves) > 1:
        axes.fill_between(grid, lowest, highest, color=_colour(index), alpha=0.15, linewidth=0)
    point = "o" if grid[0] == grid[-1] else ""  # a line of one point is not seen
    axes.plot(
        grid, mean, color=_colour(index), linestyle=style, linewidth=width, marker=point, zorder=above, label=label
    )


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]
