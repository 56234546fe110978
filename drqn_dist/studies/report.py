"""The report on a study: a page with tables, a CSV file of its runs, and pictures."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from drqn_dist.config import TrainConfig
from drqn_dist.envs.atari import PREFIX as ATARI
from drqn_dist.errors import RunFolderError
from drqn_dist.files import write_atomically
from drqn_dist.qlearning.exploration import GREEDY_EPSILON
from drqn_dist.studies import pictures
from drqn_dist.studies.cell import CURVE_POINTS, Outcome, Points
from drqn_dist.studies.finished import Finished, read_finished
from drqn_dist.studies.study import Study

PROBES = {"staleness_first": "ΔQ first", "staleness_last": "ΔQ last", "churn": "churn"}
"""What the learner measures now and then, by its tag, and what the table calls it."""
LAST_EVALUATIONS = 5
"""Behind the column that tells whether a score was still there at the end."""
LEVEL_GAMES = 20
"""An evaluation level is reached by the mean of at least so many games: one of two games may be a lucky one."""
SEEDS_OF_AN_IQM = 4
"""With fewer the middle half is all of them."""


@dataclass(frozen=True)
class Estimate:
    """What several seeds say together."""

    mean: float
    iqm: float
    """Mean of the middle half (Agarwal et al. 2021); of fewer than SEEDS_OF_AN_IQM, which leave none, of all."""
    low: float | None
    high: float | None
    """Bootstrap interval of 95 % of the mean, by percentiles; None for one seed."""


def estimate(values: Sequence[float]) -> Estimate:
    """Of one figure for each seed, at least one."""
    found = np.asarray(values, np.float64)
    low = high = None
    if len(found) > 1:
        interval = stats.bootstrap(
            (found,), np.mean, n_resamples=10_000, method="percentile", rng=0
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    return Estimate(float(found.mean()), float(stats.trim_mean(found, 0.25)), low, high)


def write_report(study: Study, out: Path) -> str:
    """Writes `README.md`, `curves.png` and `runs.csv` of the cells that have finished, `elsewhere.png` where their
    weights play in two or more other environments, and `minutes.png` where the study has levels.

    Returns:
        the tables, as they stand in README.md.

    Raises:
        RunFolderError: none has finished, or a file cannot be read or written.
    """
    finished = read_finished(study, out)
    tables = _tables(finished)
    try:
        write_atomically(out / "runs.csv", _csv(finished).encode())
        write_atomically(out / "README.md", _page(finished, tables).encode())
    except OSError as error:
        raise RunFolderError(f"cannot write the report into {out}: {error.strerror or error}") from error
    pictures.draw_curves(finished, out / "curves.png")
    if len(finished.places) > 1:
        pictures.draw_elsewhere(finished, out / "elsewhere.png")
    if study.levels:
        pictures.draw_by_the_clock(finished, out / "minutes.png")
    return tables


def _page(finished: Finished, tables: str) -> str:
    study = finished.study
    missing = len(study.cells) - len(finished.cells)
    parts = [f"# {study.title}", study.question, _protocol(finished)]
    if missing:
        parts.append(f"**{missing} of {len(study.cells)} runs have not finished.**")
    resumed = [cell.name for cell, outcome in finished.cells if outcome.resumed]
    if resumed:
        parts.append(f"Stopped on the way, and resumed: {', '.join(resumed)}.")
    parts += [tables, "![Learning curves](curves.png)"]
    if len(finished.places) > 1:
        parts.append("![The same weights elsewhere](elsewhere.png)")
    if study.levels:
        parts.append("![Games by the clock](minutes.png)")
    parts.append(
        f"`drqn-dist study` made this page of `{study.name}.toml`. Lines are means of greedy evaluations over "
        "seeds, shades their lowest and highest. `cells/` holds each run's configuration, scores, curves, versions and "
        "machine."
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _protocol(finished: Finished) -> str:
    """How the figures came about, as far as all runs share it."""
    configs = [cell.config for cell, _ in finished.cells]
    outcomes = finished.outcomes
    lines = [
        f"Each figure is the mean return of {outcomes[0].episodes} games from seeds used nowhere else, played "
        f"greedily{_but_for_epsilon(configs)} by the weights of the run's end.",
        "The interval is a percentile bootstrap of 95 % of the mean over seeds; with few seeds it is too narrow: of "
        "normal figures it holds the true mean in 50 % of cases with two seeds, 75 % with three, 84 % with five, 91 % "
        f"with ten. The IQM wants {SEEDS_OF_AN_IQM} seeds.",
        f"*Last evaluations* is the mean over each run's last {LAST_EVALUATIONS} evaluations while it trained, or of "
        f"fewer where there are no more, of {_each([config.eval.episodes for config in configs])} games each, from the "
        "same seed each time. A curve has one point more at its end: an evaluation of "
        f"{_each([_final_games(config) for config in configs])} other games.",
        _ends(outcomes),
    ]
    cut = sum(outcome.cut_short or 0 for outcome in outcomes)
    if cut:
        lines.append(
            f"{cut:,} games were not played to their end: eval.max_steps was used up; scores count as they stood."
        )
    if any(outcome.probes for outcome in outcomes):
        lines.append(
            "ΔQ, how far values after a window's burn-in are off those after the whole episode before (after R2D2, "
            "figure 1), at the first and last trained step, and churn, the share of greedy actions that one update "
            "changes, are means over the second half of a run; in brackets the lowest and highest seed."
        )
    lines += _environments(configs)
    if any(config.env.id.startswith(ATARI) for config in configs):
        kinds = {
            f"sticky actions {config.env.sticky_action_probability:g}, up to {config.env.noop_max_steps} no-ops at a "
            f"start, {config.env.frame_skip} frames a step, "
            f"{'a lost life ends a training episode' if config.env.life_loss_ends_episode else 'no life information'}, "
            f"at most {config.env.max_episode_frames:,} frames a game, in evaluations {config.eval.max_steps:,} steps"
            for config in configs
            if config.env.id.startswith(ATARI)
        }
        lines.append(f"Atari: {'; or '.join(sorted(kinds))}; scores are unclipped.")
    machines = sorted({f"{o.machine['usable_cores']} cores of {o.machine['cpu']}" for o in outcomes})
    gpus = sorted({str(o.machine["gpu"]) for o in outcomes if o.machine["gpu"]})
    versions = sorted({f"torch {o.versions['torch']}" for o in outcomes})
    lines.append(f"Machine: {'; '.join(machines + gpus)}; {', '.join(versions)}.")
    return "\n".join(lines)


def _environments(configs: Sequence[TrainConfig]) -> list[str]:
    """What the agents see beside observations, and what is around their environments."""
    fed = {config.network.last_action_and_reward for config in configs}
    lines = []
    if True in fed:
        lines.append(
            "Networks are fed their own last action and reward" + ("." if len(fed) == 1 else " in some arms only.")
        )
    wrappers = sorted({" in ".join(reversed(config.env.wrappers)) for config in configs if config.env.wrappers})
    if wrappers:
        lines.append(f"Wrappers around the environments: {'; '.join(wrappers)}.")
    return lines


def _ends(outcomes: Sequence[Outcome]) -> str:
    """Whether a good moment could have ended a run."""
    settled = sum(outcome.stopped_by == "stop_at_return" for outcome in outcomes)
    if settled:
        return f"{settled} of {len(outcomes)} runs ended when they reached stop_at_return, which flatters their end."
    return "No run was ended at a good moment, and no weights were chosen."


def _each(values: Sequence[int]) -> str:
    return " or ".join(map(str, sorted(set(values))))


def _final_games(config: TrainConfig) -> int:
    return config.eval.final_episodes or config.eval.episodes


def _but_for_epsilon(configs: Sequence[TrainConfig]) -> str:
    epsilons = sorted({config.eval.epsilon for config in configs})
    return "" if epsilons == [0] else f" (but for ε = {', '.join(f'{e:g}' for e in epsilons)})"


def _tables(finished: Finished) -> str:
    return "\n\n".join(_table(panel, finished) for panel in finished.study.panels)


def _table(panel: str, finished: Finished) -> str:
    study = finished.study
    lines = [f"## {panel}", ""] if panel else []
    columns = [
        "arm",
        "seeds",
        "mean",
        "IQM",
        "bootstrap interval",
        "each seed",
        "last evaluations",
        "agent steps",
        "minutes",
    ]
    probes = [name for name in PROBES if any(name in outcome.probes for outcome in finished.outcomes)]
    columns += [PROBES[name] for name in probes]
    lines += [_row(columns), _row(["---"] * len(columns))]
    for arm in study.arms:
        outcomes = finished.of(panel, arm)
        if not outcomes:
            continue
        means = [float(np.mean(outcome.scores)) for outcome in outcomes]
        whole = estimate(means)
        interval = "" if whole.low is None or whole.high is None else f"{_figure(whole.low)} to {_figure(whole.high)}"
        last = [value for outcome in outcomes for *_, value in outcome.while_training[-LAST_EVALUATIONS:]]
        iqm = _figure(whole.iqm) if len(outcomes) >= SEEDS_OF_AN_IQM else ""
        cells = [arm, str(len(outcomes)), f"**{_figure(whole.mean)}**", iqm, interval]
        cells += [", ".join(map(_figure, means)), _figure(float(np.mean(last))) if last else ""]
        cells += [_range([o.agent_steps for o in outcomes], ",.0f"), _range([o.minutes for o in outcomes], ".1f")]
        for name in probes:
            known = [o.probes[name] for o in outcomes if name in o.probes]
            of = f", {len(known)} seeds" if 0 < len(known) < len(outcomes) else ""
            cells.append(_with_spread(known) + of if known else "")
        lines.append(_row(cells))
    for name, value in study.references.get(panel, {}).items():
        lines.append(_row([name, "", _figure(value)] + [""] * (len(columns) - 3)))
    return "\n".join(lines) + _levels(panel, finished) + _elsewhere(panel, finished)


def _levels(panel: str, finished: Finished) -> str:
    """How long each run took until its games first came to a return: a row for each run."""
    levels = finished.study.levels
    if not levels:
        return ""
    columns = ["run", *(f"{games} at {level:g}" for level in levels for games in ("training", "evaluation"))]
    told = (
        "When the mean of the last training games, and of as many evaluations in a row as hold "
        f"{LEVEL_GAMES} games, first came to a return, by curves of at most {CURVE_POINTS} points. Of training games "
        f"those count whose ε is at most {GREEDY_EPSILON:g}, or actor.epsilon_low where that is more, once there are "
        "such."
    )
    lines = ["", "", told, "", _row(columns), _row(["---"] * len(columns))]
    for cell, outcome in finished.cells:
        if cell.panel == panel:
            curves = (outcome.training, _in_a_row(outcome.while_training, -(-LEVEL_GAMES // cell.config.eval.episodes)))
            times = [_time_to(level, curve) for level in levels for curve in curves]
            lines.append(_row([f"{cell.arm}, seed {cell.config.seed}", *times]))
    return "\n".join(lines)


def _in_a_row(curve: Points, count: int) -> Points:
    """The mean of each `count` values in a row, where the last of them lies."""
    return [
        [*curve[end - 1][:2], float(np.mean([value for *_, value in curve[end - count : end]]))]
        for end in range(count, len(curve) + 1)
    ]


def _time_to(level: float, curve: Points) -> str:
    if not curve:
        return "none counted"
    for steps, minutes, value in curve:
        if value >= level:
            return f"{minutes:.1f} min, {steps:,.0f} steps"
    steps, minutes, _ = curve[-1]
    return f"not in {minutes:.1f} min, {steps:,.0f} steps"


def _elsewhere(panel: str, finished: Finished) -> str:
    """What the same weights came to in other environments: a row for each arm, mean, lowest and highest seed."""
    names = finished.places
    if not names:
        return ""
    lines = ["", "", "Elsewhere:", "", _row(["arm", *names]), _row(["---"] * (1 + len(names)))]
    for arm in finished.study.arms:
        means = finished.elsewhere(panel, arm)
        if any(means):
            lines.append(_row([arm, *(_with_spread(values) if values else "" for values in means)]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _with_spread(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    spread = "" if len(values) == 1 else f" ({low:.3g} to {high:.3g})"
    return f"{float(np.mean(values)):.3g}{spread}"


def _figure(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _range(values: Sequence[float], spec: str) -> str:
    low, high = format(min(values), spec), format(max(values), spec)
    return low if low == high else f"{low} to {high}"


def _csv(finished: Finished) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    games, spent = ["mean_return", "std_return", "games"], ["agent_steps", "updates", "minutes", "stopped_by"]
    writer.writerow(["panel", "arm", "seed", *games, *spent, *PROBES])
    for cell, o in finished.cells:
        figures = [f"{np.mean(o.scores):.6g}", f"{np.std(o.scores):.6g}", len(o.scores)]
        cost = [o.agent_steps, o.updates, f"{o.minutes:.2f}", o.stopped_by]
        probed = [f"{o.probes[name]:.4g}" if name in o.probes else "" for name in PROBES]
        writer.writerow([cell.panel, cell.arm, cell.config.seed, *figures, *cost, *probed])
    return text.getvalue()
