"""A sweep in three panels: throughput with the fitted laws, efficiency, and where the time goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drqn_dist.errors import RunFolderError
from drqn_dist.scaling.fits import Fit
from drqn_dist.scaling.points import Point
from drqn_dist.scaling.report import fits, rows, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# By Okabe & Ito and by Tol: colour-blind readers can tell them apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_PARTS = dict(
    zip(
        ("env", "policy", "build", "encode", "push", "weights", "train", "wait", "other"),
        (*_COLOURS[:6], "#332288", "#BBBBBB", "#777777"),
        strict=True,
    )
)
_LAWS = {"amdahl": ("--", "Amdahl's law"), "usl": ("-", "Universal Scalability Law")}


def draw(points: Sequence[Point], out: Path) -> None:
    """Writes the PNG `out`.

    Raises:
        RunFolderError: it cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (speed, efficiency, time) = pyplot.subplots(1, 3, figsize=(15, 4.8), dpi=130, layout="constrained")
    laws = fits(points)
    for index, (label, curve) in enumerate(series(points).items()):
        table, colour = rows(curve), _COLOURS[index % len(_COLOURS)]
        actors = [row["actors"] for row in table]
        middle = np.array([row["agent_steps_per_s"] for row in table])
        low, high = np.array([row["spread"] for row in table]).T
        speed.errorbar(
            actors, middle, yerr=[middle - low, high - middle], fmt="o", color=colour, capsize=3, label=label
        )
        grid = np.linspace(1, max(actors), 100)
        for law, (style, name) in _LAWS.items():
            if isinstance(found := laws[label][law], Fit):
                speed.plot(grid, found.throughput(grid), style, color=colour, lw=1, label=None if index else name)
        efficiency.plot(actors, [row["efficiency"] for row in table], "o-", color=colour, label=label)
    efficiency.axhline(1, color="#999999", linewidth=0.8)
    for axes, words in (
        (speed, "agent steps per second"),
        (efficiency, "throughput per actor, as a share of that with the fewest"),
    ):
        axes.set_xlabel("actors")
        axes.set_ylabel(words)
        axes.set_xticks(sorted({point.actors for point in points}))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.legend(frameon=False, fontsize=8)
    _draw_time(time, rows(points))
    try:
        figure.savefig(out)
    except OSError as error:
        raise RunFolderError(f"cannot write {out}: {error.strerror}; choose another --out") from error
    finally:
        pyplot.close(figure)


def _draw_time(axes: Axes, table: Sequence[dict[str, Any]]) -> None:
    """A stack for each point's actors, and one for its learner if it had one."""
    shown: set[str] = set()
    stacks = [(row, role) for row in table for role in (("actor", "learner") if row["learner"] else ("actor",))]
    for place, (row, role) in enumerate(stacks):
        bottom = 0.0
        for part, colour in _PARTS.items():
            share = row.get(f"{role}_time.{part}", 0.0)
            if share > 0:
                axes.bar(place, share, 0.9, bottom, color=colour, label=None if part in shown else part)
                shown.add(part)
                bottom += share
    labels = [f"{row['actors']}x{row['envs_per_actor']}" if role == "actor" else "L" for row, role in stacks]
    axes.set_xticks(range(len(stacks)), labels, fontsize=7, rotation=90)
    axes.set_ylabel("share of time: actors x environments, and their learner (L)")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
