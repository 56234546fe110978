from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drqn_dist.errors import RunFolderError
from drqn_dist.studies.cell import outcome_path, read_outcome, settings_that_differ
from drqn_dist.studies.finished import read_finished
from drqn_dist.studies.report import _csv, _page, _tables, estimate, write_report
from drqn_dist.studies.study import load_study
from tests.studies.outcomes import finish
from tests.studies.test_study import FILE, write

STUDIES = Path(__file__).parents[2] / "studies"
TWO_GAMES = FILE.replace("episodes = 7", "episodes = 2")


def test_the_interquartile_mean_leaves_out_a_quarter_at_either_end() -> None:
    found = estimate([100.0, 1.0, 3.0, 2.0, 4.0, 5.0, 6.0, -50.0])
    assert found.iqm == (2 + 3 + 4 + 5) / 4
    assert found.mean == 71 / 8


def test_the_interval_is_that_of_resampled_means() -> None:
    # Two seeds, 0 and 1: a resampled mean is 0 or 1 with probability 1/4 each, so both ends lie there.
    assert (estimate([0.0, 1.0]).low, estimate([0.0, 1.0]).high) == (0.0, 1.0)
    # Of twenty resampled means are close to normal, with a standard error of 5.766 / sqrt(20) = 1.289.
    found = estimate([float(i) for i in range(20)])
    assert found.low == pytest.approx(9.5 - 1.96 * 1.289, abs=0.15)
    assert found.high == pytest.approx(9.5 + 1.96 * 1.289, abs=0.15)


def test_one_seed_has_no_interval_and_equal_ones_an_empty_one() -> None:
    assert (estimate([3.0]).low, estimate([3.0]).high) == (None, None)
    assert (estimate([3.0, 3.0]).low, estimate([3.0, 3.0]).high) == (3.0, 3.0)


def test_a_report_tells_every_arm_that_has_finished(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, TWO_GAMES))
    by_name = {cell.name: cell for cell in study.cells}
    finish(tmp_path, by_name["small__gru-b32__0"], scores=[1.0, 0.0], evaluations=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    finish(tmp_path, by_name["small__gru-b32__1"], scores=[1.0, 1.0], evaluations=[0.2] * 6)
    finish(tmp_path, by_name["large-slow__none-b8__4"], scores=[12.34, 12.34])
    text = write_report(study, tmp_path)
    # last evaluations, without that of the end: (0.1 + 0.2 + 0.3 + 0.4 + 0.5 + 5 * 0.2) / 10 = 0.25
    assert "| GRU, B32 | 2 | **0.750** |  | 0.500 to 1.000 | 0.500, 1.000 | 0.250 | 9,000 | 1.5 |" in text
    assert "| none, B8 | 1 | **12.3** |  |  | 12.3 |  | 9,000 | 1.5 |" in text
    assert "| by hand |  | 0.500 |" in text
    assert "GRU, B8" not in text
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert page.startswith("# Which memory?\n")
    assert f"**{len(study.cells) - 3} of {len(study.cells)} runs have not finished.**" in page
    with open(tmp_path / "runs.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["panel"], row["arm"], row["seed"], row["mean_return"]) for row in rows] == [
        ("small", "GRU, B32", "0", "0.5"),
        ("small", "GRU, B32", "1", "1"),
        ("large & slow", "none, B8", "4", "12.34"),
    ]


def test_of_four_seeds_the_iqm_is_told(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, TWO_GAMES.replace("seeds = [0, 1]", "seeds = [0, 1, 2, 3]")))
    cells = {cell.name: cell for cell in study.cells}
    for seed, score in enumerate([0.0, 2.0, 4.0, 90.0]):
        finish(tmp_path, cells[f"small__gru-b32__{seed}"], scores=[score])
    assert "| GRU, B32 | 4 | **24.0** | 3.000 |" in write_report(study, tmp_path)


def test_the_protocol_is_that_of_the_runs(tmp_path: Path) -> None:
    def page(text: str, **finished: Any) -> str:
        study = load_study(write(tmp_path, text))
        for cell in study.cells:
            finish(tmp_path, cell, [1.0], **finished)
        write_report(study, tmp_path)
        return (tmp_path / "README.md").read_text(encoding="utf-8")

    plain = page(TWO_GAMES)
    assert "the mean return of 2 games from seeds used nowhere else, played greedily by the weights" in plain
    assert "No run was ended at a good moment" in plain
    for absent in ("but for ε", "Atari:", "Wrappers", "resumed", "last action and reward", "flatters"):
        assert absent not in plain
    told = page(
        TWO_GAMES.replace(
            "[axes.size]",
            "network.last_action_and_reward = true\neval = { epsilon = 0.05, episodes = 3, final_episodes = 8 }\n"
            'env.wrappers = ["gymnasium.wrappers:FlattenObservation"]\n[axes.size]',
        ),
        stopped_by="stop_at_return",
        resumed=True,
    )
    assert "played greedily (but for ε = 0.05) by the weights" in told
    assert "of 3 games each, from the same seed each time" in told
    assert "an evaluation of 8 other games" in told
    assert "12 of 12 runs ended when they reached stop_at_return, which flatters their end." in told
    assert "Stopped on the way, and resumed: small__gru-b32__0, " in told
    assert "Networks are fed their own last action and reward.\n" in told
    assert "Wrappers around the environments: gymnasium.wrappers:FlattenObservation." in told
    some = page(TWO_GAMES.replace('core = "gru" }', 'core = "gru", network.last_action_and_reward = true }'))
    assert "Networks are fed their own last action and reward in some arms only." in some
    atari = page(
        TWO_GAMES.replace('env.kwargs.maze = "cheese"', 'env.id = "ALE/Pong-v5"\nenv.kwargs = {}')
        .replace("{ env.kwargs.size = 3 }", "{ env.sticky_action_probability = 0.25 }")
        .replace("env.kwargs.size = 5, ", "env.life_loss_ends_episode = true, ")
    )
    assert "Atari: sticky actions 0, up to" in atari
    assert "a lost life ends a training episode" in atari
    assert "; or sticky actions 0.25, up to" in atari


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The figures of the test's reports, which stay open until its end."""
    from matplotlib import pyplot

    figures: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(pyplot, "close", figures.append)
        yield figures
    for figure in figures:
        pyplot.close(figure)


def test_curves_are_drawn_of_every_arm_with_its_seeds_and_references(tmp_path: Path, drawn: list[Any]) -> None:
    study = load_study(write(tmp_path, TWO_GAMES))
    by_name = {cell.name: cell for cell in study.cells}
    finish(tmp_path, by_name["small__gru-b32__0"], scores=[1.0], evaluations=[0.0, 1.0])
    finish(tmp_path, by_name["small__gru-b32__1"], scores=[1.0], evaluations=[1.0, 2.0])
    finish(tmp_path, by_name["large-slow__none-b32__4"], scores=[1.0], evaluations=[3.0, 4.0])
    finish(tmp_path, by_name["large-slow__none-b8__4"], scores=[1.0], evaluations=[5.0])
    write_report(study, tmp_path)
    ((small, large),) = [figure.axes for figure in drawn]
    line, reference = small.get_lines()
    assert (line.get_label(), reference.get_label()) == ("GRU, B32 (2)", "by hand")
    assert (line.get_ydata()[0], line.get_ydata()[-1]) == (0.5, 1.5)
    assert set(reference.get_ydata()) == {0.5}
    (shade,) = small.collections
    assert (shade.get_paths()[0].vertices[:, 1].min(), shade.get_paths()[0].vertices[:, 1].max()) == (0.0, 2.0)
    line, single = large.get_lines()
    assert (line.get_label(), line.get_ydata()[-1], line.get_marker()) == ("none, B32", 4.0, "")
    assert (single.get_label(), single.get_ydata()[-1], single.get_marker()) == ("none, B8", 5.0, "o")


def test_what_the_learner_measured_of_itself_is_told_with_its_spread(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, TWO_GAMES))
    cells = {cell.name: cell for cell in study.cells}
    finish(tmp_path, cells["small__gru-b32__0"], [1.0], probes={"staleness_last": 0.5, "churn": 0.1})
    finish(tmp_path, cells["small__gru-b32__1"], [1.0], probes={"staleness_last": 0.25, "churn": 0.1})
    finish(tmp_path, cells["small__gru-b8__1"], [1.0], probes={"churn": 0.2})
    finish(tmp_path, cells["small__gru-b8__0"], [1.0])
    text = write_report(study, tmp_path)
    assert "| agent steps | minutes | ΔQ last | churn |" in text
    assert "| 9,000 | 1.5 | 0.375 (0.25 to 0.5) | 0.1 (0.1 to 0.1) |" in text
    assert "| 9,000 | 1.5 |  | 0.2, 1 seeds |" in text
    assert "second half of a run" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_what_the_weights_come_to_elsewhere_has_a_table_of_its_own(tmp_path: Path) -> None:
    other = "[elsewhere.longer]\nenv.kwargs.size = 9\n[axes.memory]"
    study = load_study(write(tmp_path, TWO_GAMES.replace("[axes.memory]", other)))
    cells = {cell.name: cell for cell in study.cells}
    finish(tmp_path, cells["small__gru-b32__0"], [1.0])
    finish(tmp_path, cells["small__gru-b32__1"], [0.5])
    text = write_report(study, tmp_path)
    assert "| arm | longer |\n| --- | --- |\n| GRU, B32 | 0.375 (0.25 to 0.5) |" in text
    assert not (tmp_path / "elsewhere.png").exists(), "one place makes no picture"


def test_two_places_elsewhere_make_a_picture(tmp_path: Path, drawn: list[Any]) -> None:
    other = "[elsewhere.longer]\nenv.kwargs.size = 9\n[elsewhere.shorter]\nenv.kwargs.size = 5\n[axes.memory]"
    study = load_study(write(tmp_path, TWO_GAMES.replace("[axes.memory]", other)))
    cells = {cell.name: cell for cell in study.cells}
    finish(tmp_path, cells["small__gru-b32__0"], [1.0])
    finish(tmp_path, cells["small__gru-b32__1"], [0.5])
    write_report(study, tmp_path)
    (bars,) = drawn[1].axes[0].containers
    assert list(bars.lines[0].get_ydata()) == [0.375, 0.375]
    assert (tmp_path / "elsewhere.png").exists()
    assert "(elsewhere.png)" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_levels_have_a_table_of_when_games_first_reached_them(tmp_path: Path, drawn: list[Any]) -> None:
    text = TWO_GAMES.replace("episodes = 2", "episodes = 2\nlevels = [-10, 18.5]")
    # Twenty games are two evaluations in a row.
    study = load_study(write(tmp_path, text.replace("[axes.size]", "eval.episodes = 12\n[axes.size]")))
    cells = {cell.name: cell for cell in study.cells}
    first, second = cells["small__gru-b32__0"], cells["small__gru-b32__1"]
    finish(tmp_path, first, [1.0], training=[-21, -10, -11, 18, 19], evaluations=[-21, -2, -18, 18, 18, 21])
    finish(tmp_path, second, [1.0], evaluations=[-21, 21, 21])
    text = write_report(study, tmp_path)
    assert "| run | training at -10 | evaluation at -10 | training at 18.5 | evaluation at 18.5 |" in text
    times = "0.1 min, 1,000 steps | 0.2 min, 2,000 steps | 0.4 min, 4,000 steps | not in 0.4 min, 4,000 steps"
    assert f"| GRU, B32, seed 0 | {times} |" in text
    assert (
        "| GRU, B32, seed 1 | none counted | 0.1 min, 1,000 steps | none counted | not in 0.1 min, 1,000 steps |"
        in text
    )
    axes = drawn[1].axes[0]
    assert [list(line.get_ydata()) for line in axes.get_lines()[:2]] == [[-21, -10, -11, 18, 19], []]
    assert len(axes.collections[0].get_offsets()) == 6
    assert (tmp_path / "minutes.png").exists()


def test_games_that_were_not_played_to_their_end_are_told(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, TWO_GAMES))
    cells = {cell.name: cell for cell in study.cells}
    finish(tmp_path, cells["small__gru-b32__0"], [1.0])
    write_report(study, tmp_path)
    assert "not played to their end" not in (tmp_path / "README.md").read_text(encoding="utf-8")
    for name in ("small__gru-b32__0", "small__gru-b32__1"):
        finish(tmp_path, cells[name], [1.0], cut_short=2)
    write_report(study, tmp_path)
    assert "4 games were not played to their end" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_study_of_which_nothing_has_finished_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="nothing to report yet"):
        write_report(load_study(write(tmp_path, TWO_GAMES)), tmp_path)


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_committed_pages_are_those_of_the_committed_outcomes(file: Path) -> None:
    out = STUDIES.parent / "results" / "studies" / file.stem
    if not out.exists():
        pytest.skip("its outcomes are not committed")
    finished = read_finished(load_study(file), out)
    assert (out / "README.md").read_text(encoding="utf-8") == _page(finished, _tables(finished))
    assert (out / "runs.csv").read_text(encoding="utf-8") == _csv(finished)
    named = {outcome_path(out, cell).name for cell, _ in finished.cells}
    assert {path.name for path in (out / "cells").iterdir()} == named, "outcomes that the study does not ask for"


def test_a_cell_counts_as_finished_only_with_the_settings_that_it_has_now(tmp_path: Path) -> None:
    (cell, *_) = load_study(write(tmp_path, TWO_GAMES)).cells
    finish(tmp_path, cell, scores=[1.0, 1.0])
    found = read_outcome(tmp_path, cell)
    assert found is not None
    assert found.scores == [1.0, 1.0]
    (changed, *_) = load_study(write(tmp_path, TWO_GAMES.replace("9_000", "8_000"))).cells
    assert changed.name == cell.name
    assert read_outcome(tmp_path, changed) is None
    assert settings_that_differ(tmp_path, changed) == ["total_steps"]
    (more_games, *_) = load_study(write(tmp_path, FILE)).cells
    assert read_outcome(tmp_path, more_games) is None
    assert settings_that_differ(tmp_path, more_games) == ["episodes or elsewhere"]
    outcome_path(tmp_path, cell).write_text("{", encoding="utf-8")
    with pytest.raises(RunFolderError, match="delete it"):
        read_outcome(tmp_path, cell)


@pytest.mark.parametrize(
    ("name", "value"), [("scores", None), ("scores", ["1"]), ("evaluations", [[1, None]]), ("probes", {"churn": "0"})]
)
def test_an_outcome_that_cannot_be_is_run_again(tmp_path: Path, name: str, value: Any) -> None:
    (cell, *_) = load_study(write(tmp_path, TWO_GAMES)).cells
    finish(tmp_path, cell, scores=[1.0, 1.0])
    path = outcome_path(tmp_path, cell)
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    assert read_outcome(tmp_path, cell) is None
