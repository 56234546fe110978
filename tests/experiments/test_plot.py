from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from drqn_dist.errors import RunFolderError
from drqn_dist.experiments.plot import export_csv, label_runs, mean_curve, plot_runs, read_curve
from drqn_dist.experiments.run_folder import create_run, open_run
from drqn_dist.presets import preset


def _run(folder: Path, name: str = "pong-cpu", seed: int = 0, points: int = 50) -> Path:
    config = dataclasses.replace(preset(name), run_dir=str(folder), seed=seed)
    run = create_run(config, [])
    lines = []
    for i in range(points):
        line: dict[str, float] = {"agent_steps": 100 * i, "frames": 400 * i, "wall_s": 6.0 * i}
        if i > 2:
            line["charts/episodic_return"] = -21.0 + i + seed
        if i % 10 == 9:
            line["eval/mean_return"] = -20.0 + i
        lines.append(json.dumps(line))
    (run.path / "metrics.jsonl").write_text("\n".join(lines) + "\n" if lines else "")
    return run.path


def test_a_curve_holds_the_points_that_have_a_return(tmp_path: Path) -> None:
    curve = read_curve(_run(tmp_path, points=20), "minutes")
    assert curve.training[0].tolist() == [3 * 6 / 60, -21 + 3]
    assert curve.evaluation.tolist() == [[9 * 6 / 60, -20 + 9], [19 * 6 / 60, -20 + 19]]


def test_a_curve_tells_where_its_run_was_resumed(tmp_path: Path) -> None:
    """At agent steps 450 and 1,900; the line before step 500 is of the first start, and the last one is at 1,900."""
    path = _run(tmp_path, points=20)
    run = open_run(path)
    for steps in (450, 1_900, 2_000):
        run, _ = run.go_on(run.config, updates=steps // 2, agent_steps=steps, command_line=[])
    assert run.resumed_at() == [450, 1_900, 2_000]
    assert read_curve(path, "steps").resumed == [500, 1_900]
    assert read_curve(path, "minutes").resumed == [5 * 6 / 60, 19 * 6 / 60]
    plot_runs([path], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 0
    run.go_on(run.config, updates=1, agent_steps=1_200, command_line=[])
    assert read_curve(path, "steps").resumed == [500, 1_200], "what came after 1,200 was gone over again"


def test_the_mean_is_taken_where_all_curves_are() -> None:
    low = np.array([[0.0, 0.0], [10.0, 10.0]])
    high = np.array([[2.0, 4.0], [20.0, 22.0]])  # y = x + 2
    grid, mean, lowest, highest = mean_curve([low, high])
    assert (grid[0], grid[-1]) == (2.0, 10.0)
    np.testing.assert_allclose(mean, grid + 1)
    np.testing.assert_allclose(lowest, grid)
    np.testing.assert_allclose(highest, grid + 2)


def test_runs_share_a_line_only_if_they_differ_in_nothing_but_the_seed() -> None:
    grid = preset("gridworld")
    memoryless = dataclasses.replace(grid, network=dataclasses.replace(grid.network, core="none"))
    configs = [grid, dataclasses.replace(grid, seed=1, minutes=3.0), memoryless, preset("dqn")]
    assert label_runs(configs) == [
        "drqn_dist/GridWorld-v0, gridworld, network.core gru",
        "drqn_dist/GridWorld-v0, gridworld, network.core gru",
        "drqn_dist/GridWorld-v0, gridworld, network.core none",
        "ALE/Pong-v5, dqn",
    ]


@pytest.mark.parametrize("x", ["steps", "frames", "minutes"])
def test_several_runs_become_a_png(tmp_path: Path, x: str) -> None:
    runs = [_run(tmp_path, seed=0), _run(tmp_path, seed=1, points=30), _run(tmp_path, "dqn")]
    out = tmp_path / "curve.png"
    plot_runs(runs, out, x)  # type: ignore[arg-type]
    assert out.read_bytes().startswith(b"\x89PNG")
    assert out.stat().st_size > 10_000


def test_a_run_without_any_return_yet_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no episode's return yet"):
        plot_runs([_run(tmp_path, points=2)], tmp_path / "curve.png")


def test_a_png_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="choose another --out"):
        plot_runs([_run(tmp_path)], tmp_path / "none" / "curve.png")


def test_metrics_are_exported_as_csv_with_a_column_for_each_tag(tmp_path: Path) -> None:
    out = tmp_path / "metrics.csv"
    export_csv(_run(tmp_path, points=12), out)
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["agent_steps", "frames", "wall_s", "charts/episodic_return", "eval/mean_return"]
    assert rows[0]["charts/episodic_return"] == ""
    assert (rows[9]["charts/episodic_return"], rows[9]["eval/mean_return"]) == (str(-21.0 + 9), str(-20.0 + 9))
    with pytest.raises(RunFolderError, match="choose another --csv"):
        export_csv(_run(tmp_path), tmp_path / "none" / "metrics.csv")
