"""Learning curves: runs that differ in their seed alone become one line with its spread."""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from drqn_dist.config import TrainConfig, differences, setting
from drqn_dist.errors import RunFolderError
from drqn_dist.experiments.run_folder import open_run
from drqn_dist.files import write_atomically
from drqn_dist.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

XAxis = Literal["steps", "frames", "minutes"]

TRAINING_TAG = "charts/episodic_return"
EVAL_TAG = "eval/mean_return"
GRID_POINTS = 200
PANELS_ACROSS = 4

_BOUNDS = ("total_steps", "minutes", "stop_at_return")
_PERIODS = ("log_period_s", "checkpoint_period_s", "checkpoints_kept")
_NOT_COMPARED = frozenset(["seed", "run_dir", "address", *_BOUNDS, *_PERIODS])
"""Settings that do not make another curve: the seed, when to stop, where to run, how often to report and save."""
_X_COLUMNS = {"steps": ("agent_steps", 1.0), "frames": ("frames", 1.0), "minutes": ("wall_s", 1 / 60)}
_X_LABELS = {"steps": "agent steps", "frames": "frames", "minutes": "minutes"}
# Okabe & Ito: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

Points = npt.NDArray[np.float64]


class Curve(NamedTuple):
    """One run's points, float64 [P, 2] and [E, 2]: x, mean return of recent training episodes or of an evaluation."""

    training: Points
    evaluation: Points
    resumed: list[float]
    """x of where it went on after a stop."""


def read_curve(run: Path, x: XAxis) -> Curve:
    """The learning curve of a run.

    Raises:
        RunFolderError: it is no run or has no returns yet.
    """
    column, scale = _X_COLUMNS[x]
    lines = read_metrics(run)
    starts: list[int] = []
    for steps in open_run(run).resumed_at():
        while starts and starts[-1] > steps:  # it was gone over again, as its lines were
            starts.pop()
        starts.append(steps)
    resumed: list[float] = []
    for steps in starts:
        resumed += [line[column] * scale for line in lines if line["agent_steps"] >= steps][:1]

    def points(tag: str) -> Points:
        found = [(line[column] * scale, line[tag]) for line in lines if tag in line]
        return np.array(found, dtype=np.float64).reshape(-1, 2)

    curve = Curve(points(TRAINING_TAG), points(EVAL_TAG), resumed)
    if not len(curve.training) and not len(curve.evaluation):
        raise RunFolderError(f"{run} holds no episode's return yet; wait until its first episodes have ended")
    return curve


def plot_runs(runs: Sequence[Path], out: Path, x: XAxis = "steps") -> None:
    """Draws the learning curves of `runs` into the PNG `out`.

    A thin line is one run; a thick one the mean over runs that differ in their seed alone, drawn as far as all of
    them went; the shade spans their lowest to their highest; dots are greedy evaluations. A dotted line is where a run
    that is alone was resumed.

    Raises:
        RunFolderError: a run cannot be read, or `out` cannot be written.
    """
    from matplotlib.ticker import EngFormatter  # takes a second to import

    groups: dict[str, list[Curve]] = {}
    labels = label_runs([open_run(run).config for run in runs])
    for run, label in zip(runs, labels, strict=True):
        groups.setdefault(label, []).append(read_curve(run, x))

    with figure(out, (8, 4.5), 150) as (axes,):
        for index, (label, curves) in enumerate(sorted(groups.items())):
            _draw_group(axes, label, curves, COLOURS[index % len(COLOURS)])
        axes.set_xlabel(_X_LABELS[x])
        axes.set_ylabel("episode return")
        axes.margins(x=0.01)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="best", fontsize=9)


@contextmanager
def figure(out: Path, inches: tuple[float, float], dpi: int, panels: int = 1) -> Iterator[list["Axes"]]:
    """Axes, up to four side by side and each of this size, to be drawn on in this context, and then written as the PNG
    `out`.

    Raises:
        RunFolderError: it cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(panels, PANELS_ACROSS)
    rows = -(-panels // columns)
    size = (columns * inches[0], rows * inches[1])
    drawn, axes = pyplot.subplots(rows, columns, squeeze=False, figsize=size, dpi=dpi, layout="constrained")
    for unused in axes.flat[panels:]:
        unused.set_axis_off()
    try:
        yield list(axes.flat[:panels])
        content = io.BytesIO()
        drawn.savefig(content, format="png")
        write_atomically(out, content.getvalue())
    except OSError as error:
        raise RunFolderError(f"cannot write {out}: {error.strerror or error}; choose another --out") from error
    finally:
        pyplot.close(drawn)


def label_runs(configs: Sequence[TrainConfig]) -> list[str]:
    """What each run is compared by: environment, preset, and the settings in which runs of these two differ."""
    labels = []
    for config in configs:
        alike = [other for other in configs if (other.env.id, other.preset) == (config.env.id, config.preset)]
        names = sorted({name for other in alike for name in differences(alike[0], other)} - _NOT_COMPARED)
        labels.append(", ".join([config.env.id, config.preset, *(f"{name} {setting(config, name)}" for name in names)]))
    return labels


def export_csv(run: Path, out: Path) -> None:
    """Writes a run's metrics as CSV: a column for each tag, empty where a line has none.

    Raises:
        RunFolderError: the run cannot be read, or `out` cannot be written.
    """
    lines = read_metrics(run)
    first = ["agent_steps", "frames", "wall_s"]
    tags = sorted({tag for line in lines for tag in line} - set(first))
    try:
        with open(out, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, first + tags)
            writer.writeheader()
            writer.writerows(lines)
    except OSError as error:
        raise RunFolderError(f"cannot write {out}: {error.strerror}; choose another --csv") from error


def mean_curve(curves: Sequence[Points]) -> tuple[Points, Points, Points, Points]:
    """Mean, lowest and highest of several curves on a common grid over the stretch that all of them cover.

    Args:
        curves: float64 [P_i, 2] each, x ascending.

    Returns:
        x, mean, lowest, highest: float64 [G] each.
    """
    start = max(curve[0, 0] for curve in curves)
    end = min(curve[-1, 0] for curve in curves)
    grid = np.linspace(start, max(start, end), GRID_POINTS)
    values = np.stack([np.interp(grid, curve[:, 0], curve[:, 1]) for curve in curves])
    return grid, values.mean(axis=0), values.min(axis=0), values.max(axis=0)


def _draw_group(axes: "Axes", label: str, curves: Sequence[Curve], colour: str) -> None:
    trained = [curve.training for curve in curves if len(curve.training)]
    runs = f" ({len(curves)} runs)" if len(curves) > 1 else ""
    if len(trained) > 1:
        for points in trained:
            axes.plot(points[:, 0], points[:, 1], color=colour, linewidth=0.6, alpha=0.45)
        grid, mean, lowest, highest = mean_curve(trained)
        axes.fill_between(grid, lowest, highest, color=colour, alpha=0.15, linewidth=0)
        axes.plot(grid, mean, color=colour, linewidth=2, label=label + runs)
    elif trained:
        axes.plot(trained[0][:, 0], trained[0][:, 1], color=colour, linewidth=1.6, label=label + runs)
    if len(curves) == 1:
        for number, x in enumerate(curves[0].resumed):
            label_of_all = "resumed" if number == 0 else "_"
            axes.axvline(x, color=colour, linewidth=0.9, linestyle=":", alpha=0.8, label=label_of_all)
    evaluated = np.concatenate([curve.evaluation for curve in curves])
    if len(evaluated):
        style: dict[str, Any] = {"s": 16, "color": colour, "edgecolors": "white", "linewidths": 0.5, "zorder": 3}
        axes.scatter(evaluated[:, 0], evaluated[:, 1], label=f"{label}, greedy evaluation", **style)
