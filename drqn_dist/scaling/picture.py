"""A sweep in three panels: throughput with the fitted laws, efficiency, and where the time goes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from drqn_dist.errors import RunFolderError
from drqn_dist.scaling.fits import Fit
from drqn_dist.scaling.points import Point
from drqn_dist.scaling.report import by_key, fits, median, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito, and Tol for the rest: told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_PARTS = {
    "env": "#0072B2",
    "inference": "#D55E00",
    "build": "#009E73",
    "encode": "#CC79A7",
    "push": "#E69F00",
    "weights": "#56B4E9",
    "decode": "#117733",
    "train": "#332288",
    "publish": "#AA4499",
    "wait": "#BBBBBB",
    "idle": "#F0F0F0",
    "other": "#777777",
}
_ROLES = {"actor": "A", "loader": "B", "learner": "L"}


def draw(points: Sequence[Point], out: Path) -> None:
    """Writes the PNG `out`.

    Raises:
        RunFolderError: it cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (speed, efficiency, time) = pyplot.subplots(1, 3, figsize=(15, 4.8), dpi=130, layout="constrained")
    try:
        _draw_speed(speed, points)
        _draw_efficiency(efficiency, points)
        _draw_time(time, points)
        for axes in (speed, efficiency, time):
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(out, format="png")
    except OSError as error:
        raise RunFolderError(f"cannot write {out}: {error.strerror or error}; choose another --out") from error
    finally:
        pyplot.close(figure)


def _draw_speed(axes: Axes, points: Sequence[Point]) -> None:
    laws = fits(points)
    for index, (label, curve) in enumerate(series(points).items()):
        colour = _COLOURS[index % len(_COLOURS)]
        groups = list(by_key(curve).values())
        actors = [group[0].actors for group in groups]
        speeds = [[point.agent_steps_per_s for point in group] for group in groups]
        middle = [statistics.median(values) for values in speeds]
        below = [m - min(values) for m, values in zip(middle, speeds, strict=True)]
        above = [max(values) - m for m, values in zip(middle, speeds, strict=True)]
        axes.errorbar(actors, middle, yerr=[below, above], fmt="o", color=colour, capsize=3, label=label)
        grid = np.linspace(1, max(actors), 100)
        for law, style in (("amdahl", "--"), ("usl", "-")):
            if isinstance(found := laws[label][law], Fit):
                name = None if index else {"amdahl": "Amdahl's law", "usl": "Universal Scalability Law"}[law]
                axes.plot(grid, found.throughput(grid), style, color=colour, linewidth=1, alpha=0.8, label=name)
    axes.set_xlabel("actors")
    axes.set_ylabel("agent steps per second")
    axes.set_xticks(sorted({point.actors for point in points}))
    axes.set_ylim(0, 1.08 * max(point.agent_steps_per_s for point in points) or 1.0)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False, fontsize=8)


def _draw_efficiency(axes: Axes, points: Sequence[Point]) -> None:
    highest = 1.0
    for index, (label, curve) in enumerate(series(points).items()):
        groups = list(by_key(curve).values())
        speed = {group[0].actors: median(group)["agent_steps_per_s"] for group in groups}
        fewest = min(speed)
        share = [speed[n] / n / (speed[fewest] / fewest) if speed[fewest] else 0.0 for n in speed]
        highest = max(highest, *share)
        axes.plot(list(speed), share, "o-", color=_COLOURS[index % len(_COLOURS)], label=label)
    axes.axhline(1, color="#999999", linewidth=0.8)
    axes.set_xlabel("actors")
    axes.set_ylabel("throughput per actor, of that of the fewest")
    axes.set_xticks(sorted({point.actors for point in points}))
    axes.set_ylim(0, 1.15 * highest)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False, fontsize=8)


def _draw_time(axes: Axes, points: Sequence[Point]) -> None:
    """A stack for each point and role that was at work."""
    shown: set[str] = set()
    ticks, labels, place = [], [], 0.0
    for group in by_key(points).values():
        row = median(group)
        roles = _ROLES if row["learner"] else {"actor": "A"}
        for role, letter in roles.items():
            bottom = 0.0
            for name, share in row.items():
                table, _, part = name.partition(".")
                if table != f"{role}_time" or share <= 0:
                    continue
                label = None if part in shown else part
                shown.add(part)
                axes.bar(place, share, 0.9, bottom, color=_PARTS[part], label=label)
                bottom += share
            ticks.append(place)
            middle = letter == list(roles.values())[len(roles) // 2]
            nodes = f"\n{row['nodes']} nodes" if row["nodes"] > 1 else ""
            labels.append(letter + (f"\n{row['actors']}x{row['envs_per_actor']}{nodes}" if middle else ""))
            place += 1
        place += 0.5
    axes.set_xticks(ticks, labels, fontsize=7)
    axes.set_ylabel("share of time: A actors, B loaders (batches), L learner")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, fontsize=7, ncols=2, loc="upper left", bbox_to_anchor=(1.0, 1.0))
