from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drqn_dist.cli import main
from drqn_dist.experiments import run_folder
from drqn_dist.scaling import crowding, measure, shard
from drqn_dist.scaling.points import Point, read_points
from drqn_dist.scaling.profile import ShardPrice
from tests.scaling.made_up import point


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Measures nothing: gives made-up points, and records which (actors, repeat) were asked for."""
    asked: list[tuple[int, int]] = []

    def made_up(config: Any, actors: int, envs: int, nodes: int, learner: bool, *times: Any) -> Point:
        asked.append((actors, times[-1]))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return point(actors, envs, learner, times[-1], nodes=nodes)

    monkeypatch.setattr(measure, "measure", made_up)
    monkeypatch.setattr(crowding, "measure_crowding", lambda config, cores, learner: 0.07)
    price = ShardPrice(push_call_s=0.0005, push_s=0.0001, sample_s=0.001, priorities_s=0.0005)
    monkeypatch.setattr(shard, "measure_shard", lambda config, spec, cores, neighbours: price)
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
    assert len(read_points(tmp_path / "points.jsonl")) == 3
    assert f"3 measurements are kept in {tmp_path}, and the same command goes on" in capsys.readouterr().err
    main([*line, "--json"])
    # The interrupted one again, and then those that were left.
    assert measured[4] == measured[3]
    assert sorted(measured[:3] + measured[4:]) == [(n, r) for n in (1, 2, 3) for r in (0, 1)]
    result = json.loads(capsys.readouterr().out)
    assert [row["actors"] for row in result["points"]] == [1, 2, 3]
    names = ["points.jsonl", "profile.json", "scale.csv", "scale.json", "scale.png", "sweep.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert json.loads((tmp_path / "scale.json").read_text()) == result
    profile = json.loads((tmp_path / "profile.json").read_text())
    assert (profile["crowding"], len(profile["points"])) == ({"neighbours": 0.07, "turns": 0.0}, 6)

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


def test_what_was_measured_can_be_simulated_and_validated(
    measured: list[tuple[int, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    main(["scale", "--preset", "gridworld", "--actors", "1,2,4", "--repeats", "1", "--out", str(sweep)])
    capsys.readouterr()
    main(
        [
            *("scale", "--simulate", "4,16", "--profile", str(sweep / "profile.json"), "--json"),
            *("--validate", str(sweep / "points.jsonl"), "--out", str(tmp_path / "simulated")),
        ]
    )
    result = json.loads(capsys.readouterr().out)
    assert [p["actors"] for p in result["predictions"]] == [4, 16]
    assert [c["fitted"] for c in result["validation"]] == [True, False, True]
    assert result["verdict"].startswith("Over 1 points")
    assert json.loads((tmp_path / "simulated" / "simulation.json").read_text()) == result
    main(["scale", "--validate", str(sweep / "points.jsonl"), "--profile", str(sweep / "profile.json")])
    assert capsys.readouterr().out.splitlines()[-1] == result["verdict"]


def test_points_that_cannot_be_measured_are_refused_before_any_is(
    measured: list[tuple[int, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for line, words in (
        (["--actors", "1,4", "--nodes", "1,3"], "one head and 2 for actors, but there are 1"),
        (["--actors", "1,90000", "--set", "replay.capacity_steps=1000000000"], "this run may need"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["scale", "--preset", "gridworld", *line, "--out", str(tmp_path / "out")])
        assert stopped.value.code == 2
        assert words in capsys.readouterr().err
    assert not measured
    assert not (tmp_path / "out").exists()


def test_a_simulation_takes_one_number_of_environments(
    measured: list[tuple[int, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["scale", "--preset", "gridworld", "--actors", "1", "--repeats", "1", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        main(["scale", "--simulate", "4", "--envs-per-actor", "8,16", "--profile", str(tmp_path / "profile.json")])
    assert stopped.value.code == 2
    assert "one number of environments" in capsys.readouterr().err


def test_points_of_other_settings_are_validated_with_a_word_about_them(
    measured: list[tuple[int, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, settings in (("one", []), ("other", ["--set", "replay.samples_per_insert=2"])):
        sweep = ["--preset", "gridworld", "--actors", "1", "--repeats", "1", *settings, "--out", str(tmp_path / name)]
        main(["scale", *sweep])
        capsys.readouterr()
        points = str(tmp_path / name / "points.jsonl")
        main(["scale", "--validate", points, "--profile", str(tmp_path / "one" / "profile.json")])
        said = capsys.readouterr().out
        assert ("under other settings: replay.samples_per_insert 2.0 there, 16.0 here" in said) == (name == "other")
