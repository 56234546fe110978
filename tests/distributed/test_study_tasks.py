"""Cells as tasks of a Ray that runs already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drqn_dist.distributed.study_tasks import cluster
from drqn_dist.errors import ConfigError, RoleFailedError
from drqn_dist.experiments.run_folder import open_run
from drqn_dist.studies.cell import outcome_path, read_outcome
from drqn_dist.studies.runner import run_study
from drqn_dist.studies.study import load_study
from tests.runs import until
from tests.studies.test_runner import LONG, SMALL
from tests.studies.test_study import write


def test_cells_are_tasks_and_their_outcomes_come_back(local_ray: Any, tmp_path: Path) -> None:
    text = SMALL.replace("seeds = [0, 1]", "seeds = [0]")
    text = text.replace("GRU = {}", 'GRU = { learner.device = "cuda:99" }')
    study = load_study(write(tmp_path, text))
    with pytest.raises(
        RoleFailedError, match=r"1 of 2 runs failed: gru__0 \(.*ConfigError: learner\.device is 'cuda:99'"
    ):
        run_study(study, tmp_path / "out", tmp_path / "runs", jobs=None, address="auto")
    gru, none = study.cells
    assert not outcome_path(tmp_path / "out", gru).exists()
    outcome = read_outcome(tmp_path / "out", none)
    assert outcome is not None
    assert len(outcome.scores) == 5
    assert any((tmp_path / "runs" / "none__0").glob("*/checkpoints/*"))


def test_a_task_that_is_stopped_saves_its_run(local_ray: Any, tmp_path: Path) -> None:
    (cell, *_) = load_study(write(tmp_path, LONG)).cells
    out, runs = tmp_path / "out", tmp_path / "runs"
    with cluster("auto", out, runs) as place:
        job = place.start(cell)
        until(lambda: any(runs.glob("gru__0/*/metrics.jsonl")), "the run to begin")
        assert not job.ended()
        assert place.stop([job], insist=0) == 0
        assert job.ended()
    (folder,) = runs.glob("gru__0/*")
    run = open_run(folder)
    assert run.read_summary().stopped_by == "signal"
    assert run.checkpoints.latest() is not None
    assert read_outcome(out, cell) is None


def test_a_cell_that_starts_ray_is_no_task_of_it(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, SMALL.replace('mode = "serial"', 'mode = "ray"')))
    with pytest.raises(ConfigError, match=r'gru__0 starts Ray .* mode = "serial"'):
        run_study(study, tmp_path / "out", tmp_path / "runs", jobs=None, address="auto")
