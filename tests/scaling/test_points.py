from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drqn_dist.errors import ConfigError, RunFolderError
from drqn_dist.scaling.points import PointsFile, read_sweep
from drqn_dist.scaling.sweep import order
from tests.scaling.made_up import point

SETTINGS: dict[str, Any] = {"config": {"seed": 0, "env": {"id": "A", "kwargs": {}}}, "seconds": 5.0}


def test_points_are_on_disk_as_soon_as_they_are_added(tmp_path: Path) -> None:
    PointsFile(tmp_path / "new" / "sweep", SETTINGS).add(point(1))
    assert PointsFile(tmp_path / "new" / "sweep", SETTINGS).points == [point(1)]


@pytest.mark.parametrize("whole", [0, 1])
def test_a_sweep_goes_on_after_a_line_that_a_kill_cut_short(whole: int, tmp_path: Path) -> None:
    PointsFile(tmp_path, SETTINGS).add(point(1))
    path = tmp_path / "points.jsonl"
    path.write_text(path.read_text() * whole + path.read_text()[:100])
    again = PointsFile(tmp_path, SETTINGS)
    assert again.points == [point(1)] * whole
    again.add(point(2))
    assert PointsFile(tmp_path, SETTINGS).points == [*[point(1)] * whole, point(2)]


def test_a_folder_of_other_settings_is_refused_and_says_which_differ(tmp_path: Path) -> None:
    PointsFile(tmp_path, SETTINGS)
    other = SETTINGS | {"config": {"seed": 1, "env": {"id": "A", "kwargs": {}}}}
    with pytest.raises(ConfigError, match=r"another sweep: config\.seed 0 there, 1 asked; use those settings"):
        PointsFile(tmp_path, other)
    PointsFile(tmp_path, SETTINGS)


def test_a_file_that_holds_no_points_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no measured points"):
        read_sweep(tmp_path)
    PointsFile(tmp_path, SETTINGS)
    no_number = json.dumps(vars(point()) | {"agent_steps_per_s": None})
    for text in (f"{no_number}\n", '{"actors": 1}\n', "nonsense\n", "[]\n", '{"odd": 1}\n'):
        (tmp_path / "points.jsonl").write_text(text)
        with pytest.raises(RunFolderError, match=r"the points in .* are damaged"):
            PointsFile(tmp_path, SETTINGS)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(RunFolderError, match="damaged"):
        PointsFile(tmp_path, SETTINGS)


def test_a_row_names_nested_figures_with_dots() -> None:
    row = point(2, learner=True).flat()
    assert (row["actors"], row["cores.learner"], row["actor_time.env"]) == (2, 0.9, 0.5)
    assert not any(isinstance(value, dict) for value in row.values())


def test_every_point_is_measured_once_per_repeat_in_another_order_each_time() -> None:
    grid = [(n, e) for n in (1, 2, 4, 8) for e in (8, 16)]
    todo = list(order(grid, 3, []))
    rounds = [[key for key, repeat in todo if repeat == r] for r in range(3)]
    assert all(sorted(keys) == sorted(grid) for keys in rounds)
    assert rounds[0] != rounds[1] != rounds[2]
    assert [repeat for _, repeat in todo] == [0] * 8 + [1] * 8 + [2] * 8
    assert list(order(grid, 3, [])) == todo


def test_what_is_measured_already_is_left_out() -> None:
    grid = [(n, 16) for n in (1, 2)]
    left = list(order(grid, 2, [point(1, repeat=0), point(2, repeat=1), point(1, envs=8, repeat=1)]))
    assert sorted(left) == [((1, 16), 1), ((2, 16), 0)]
