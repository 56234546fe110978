from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drqn_dist.cli import main
from drqn_dist.experiments import run_folder
from drqn_dist.scaling import measure
from drqn_dist.scaling.points import Point
from tests.scaling.made_up import point


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Measures nothing: gives made-up points, and records which (actors, repeat) were asked for."""
    asked: list[tuple[int, int]] = []

    def made_up(config: Any, actors: int, envs: int, learner: bool, *times: Any) -> Point:
        asked.append((actors, times[-1]))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return point(actors, envs, learner, times[-1])

    monkeypatch.setattr(measure, "measure", made_up)
    return asked


SWEEP = ["scale", "--preset", "gridworld", "--actors", "1,2,3", "--repeats", "2", "--seconds", "1"]


def test_an_interrupted_sweep_goes_on_where_it_stopped(
    measured: list[tuple[int, int]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = [*SWEEP, "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        main(line)
    assert stopped.value.code == 130
    assert len((tmp_path / "points.jsonl").read_text().splitlines()) == 3
    assert f"3 measurements are kept in {tmp_path}, and the same command goes on" in capsys.readouterr().err
    main([*line, "--json"])
    # The interrupted one again, and then those that were left.
    assert measured[4] == measured[3]
    assert sorted(measured[:3] + measured[4:]) == [(n, r) for n in (1, 2, 3) for r in (0, 1)]
    result = json.loads(capsys.readouterr().out)
    assert [row["actors"] for row in result["points"]] == [1, 2, 3]
    names = ["points.jsonl", "scale.csv", "scale.json", "scale.png", "sweep.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert json.loads((tmp_path / "scale.json").read_text()) == result

    main(line)
    assert len(measured) == 7, "nothing was left to measure"
    assert capsys.readouterr().out.strip().endswith(result["bottleneck"])
    with pytest.raises(SystemExit) as stopped:
        main([*line, "--seconds", "2"])
    assert stopped.value.code == 2
    assert "seconds 1.0 there, 2.0 asked" in capsys.readouterr().err
    monkeypatch.setattr(run_folder, "machine_description", lambda: {"cpu": "another", "usable_cores": 2})
    with pytest.raises(SystemExit) as stopped:
        main(line)
    assert stopped.value.code == 2
    assert "there, 'another' asked" in capsys.readouterr().err


def test_what_was_measured_can_be_simulated_with_its_error(
    measured: list[tuple[int, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    main(["scale", "--preset", "gridworld", "--actors", "1,2,4", "--repeats", "1", "--out", str(sweep)])
    capsys.readouterr()
    line = ["scale", "--simulate", "4,16", "--out", str(sweep)]
    main([*line, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert [p["actors"] for p in result["predictions"]] == [4, 16]
    assert [c["actors"] for c in result["comparisons"]] == [1, 2, 4]
    assert json.loads((sweep / "simulation.json").read_text()) == result
    main(line)
    assert capsys.readouterr().out.splitlines()[-1] == result["error"]
    assert result["error"].startswith("Each of 3 measured points is predicted from the others")


def test_points_that_cannot_be_measured_are_refused_before_any_is(
    measured: list[tuple[int, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--actors", "1,90000", "--set", "replay.capacity_steps=1000000000", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        main(["scale", "--preset", "gridworld", *line])
    assert stopped.value.code == 2
    assert "this run may need" in capsys.readouterr().err
    assert not measured
    assert not (tmp_path / "out").exists()


def test_a_simulation_takes_one_number_of_environments(
    measured: list[tuple[int, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["scale", "--preset", "gridworld", "--actors", "1", "--repeats", "1", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        main(["scale", "--simulate", "4", "--envs-per-actor", "8,16", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "one number of environments" in capsys.readouterr().err
