from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from drqn_dist.checkpoint import Checkpoint
from drqn_dist.errors import CheckpointUnreadError, ConfigError, EnvError, RoleFailedError
from drqn_dist.experiments.run_folder import Summary, create_run, open_run
from drqn_dist.presets import preset
from drqn_dist.studies.cell import (
    CURVE_POINTS,
    _begun_run,
    _curve,
    _probes,
    _with_time_left,
    _without_refused,
    outcome_path,
    read_outcome,
)
from drqn_dist.studies.report import write_report
from drqn_dist.studies.runner import _share_done, run_study
from drqn_dist.studies.study import Study, load_study
from tests.runs import until
from tests.studies.test_study import write

SMALL = """
seeds = [0, 1]
episodes = 5

[settings]
preset = "gridworld"
mode = "serial"
total_steps = 1_500
env.kwargs = { maze = "tmaze", size = 2 }
stop_at_return = "None"
network = { torso_units = 8, core_units = 8 }
eval = { period_updates = 5, episodes = 2 }

[axes.memory]
GRU = {}
none = { network.core = "none", seeds = [0] }
"""


def run(folder: Path, text: str, jobs: int | None = None) -> Study:
    study = load_study(write(folder, text))
    run_study(study, folder / "out", folder / "runs", jobs)
    return study


def test_every_cell_is_run_once_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = run(tmp_path, SMALL)
    outcomes = [read_outcome(tmp_path / "out", cell) for cell in study.cells]
    for cell, outcome in zip(study.cells, outcomes, strict=True):
        assert outcome is not None, cell.name
        assert (outcome.agent_steps >= 1_500, outcome.stopped_by, outcome.resumed) == (True, "total_steps", False)
        assert len(outcome.scores) == 5
        assert len(outcome.evaluations) > 1
    assert len({outcome.weights_sha256 for outcome in outcomes if outcome}) == 3, "other seeds, other weights"

    def times() -> list[int]:
        return [outcome_path(tmp_path / "out", cell).stat().st_mtime_ns for cell in study.cells]

    before = times()
    run(tmp_path, SMALL)
    assert times() == before
    assert "replaced" not in capsys.readouterr().err
    run(tmp_path, SMALL.replace("episodes = 2", "episodes = 3"))
    told = " ".join(capsys.readouterr().err.split())
    assert "are of other settings and will be replaced, such as gru__0 (eval.episodes)" in told
    assert all(new > old for new, old in zip(times(), before, strict=True)), "other settings, other runs"


def test_a_cell_that_fails_is_told_and_the_others_finish(tmp_path: Path) -> None:
    text = SMALL.replace("GRU = {}", 'GRU = { learner.device = "cuda:99", seeds = [0] }')
    with pytest.raises(RoleFailedError, match=r"1 of 2 runs failed: gru__0 \(error: learner\.device is 'cuda:99'"):
        run(tmp_path, text, jobs=1)
    assert [
        cell.name for cell in load_study(tmp_path / "which.toml").cells if outcome_path(tmp_path / "out", cell).exists()
    ] == ["none__0"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("none = { network", 'none = { env.id = "nowhere:Maze-v0", env.kwargs = {}, network', "'nowhere'"),
        ("[axes.memory]", "[elsewhere.other]\nenv.kwargs.maze = 'tmaz'\n[axes.memory]", "'tmaz'"),
    ],
)
def test_an_environment_that_cannot_be_made_is_told_before_anything_is_run(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(EnvError, match=message):
        run(tmp_path, SMALL.replace(old, new))
    assert not (tmp_path / "runs").exists()


def test_how_far_a_run_has_come_is_read_from_its_metrics(tmp_path: Path) -> None:
    (cell, *_) = load_study(write(tmp_path, SMALL)).cells
    assert _share_done(tmp_path, cell) == 0.0
    folder = create_run(replace(cell.config, run_dir=str(tmp_path / cell.name)), ["train"]).path
    for text, share in (
        ("", 0.0),
        ('{"agent_steps": 300, "wall_s": 60}\n{"agent_steps": 900', 0.2),
        ('{"agent_steps": 1600, "wall_s": 60}\n', 1.0),
    ):
        (folder / "metrics.jsonl").write_text(text)
        assert _share_done(tmp_path, cell) == share
    (folder / "metrics.jsonl").write_text('{"agent_steps": 300, "wall_s": 60}\n')
    other = replace(cell, config=replace(cell.config, total_steps=3_000))
    assert _share_done(tmp_path, other) == 0.0, "the run of other settings"
    for minutes, share in ((2.0, 0.5), (10.0, 0.2)):  # whichever bound comes first
        bounded = replace(cell, config=replace(cell.config, minutes=minutes, run_dir=str(tmp_path / cell.name)))
        folder = create_run(bounded.config, ["train"]).path
        (folder / "metrics.jsonl").write_text('{"agent_steps": 300, "wall_s": 60}\n')
        assert _share_done(tmp_path, bounded) == share


def test_games_that_did_not_confirm_are_no_evaluation_of_the_curve(tmp_path: Path) -> None:
    (cell, *_) = load_study(write(tmp_path, SMALL)).cells  # two games an evaluation
    lines = [
        {"agent_steps": 10.0, "eval/mean_return": 1.0, "eval/episodes": 2.0},
        {"agent_steps": 10.0, "eval/mean_return": 2.0, "eval/episodes": 20.0},
        {"agent_steps": 15.0},
        {"agent_steps": 20.0, "eval/mean_return": 3.0, "eval/episodes": 2.0},
        {"agent_steps": 20.0, "eval/mean_return": 4.0, "eval/episodes": 20.0},
        {"agent_steps": 20.0},
    ]
    assert _without_refused(lines, cell.config) == [lines[0], *lines[2:]]


def test_a_cell_is_run_by_one_process_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with open(tmp_path / "runs" / "none__0.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RoleFailedError, match=r"none__0 \(error: another process is at"):
            run(tmp_path, SMALL.replace("GRU = {}", ""))


def test_jobs_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--jobs is 0"):
        run(tmp_path, SMALL, jobs=0)


def test_a_run_that_has_ended_is_not_trained_again(tmp_path: Path) -> None:
    text = SMALL.replace("seeds = [0, 1]", "seeds = [0]").replace("\nnone", "\n# none") + "\n"
    study = run(tmp_path, text)
    first = read_outcome(tmp_path / "out", study.cells[0])
    (folder,) = (tmp_path / "runs").glob("gru__0/*")
    before = (folder / "metrics.jsonl").read_bytes()
    # A process that was killed after the training has left no outcome; another asks for more games.
    outcome_path(tmp_path / "out", study.cells[0]).unlink()
    study = run(tmp_path, text.replace("episodes = 5", "episodes = 7"))
    second = read_outcome(tmp_path / "out", study.cells[0])
    assert first is not None
    assert second is not None
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert list((tmp_path / "runs").glob("gru__0/*")) == [folder]
    assert len(second.scores) == 7
    assert (second.resumed, second.weights_sha256) == (False, first.weights_sha256)


def test_the_last_weights_play_elsewhere_too(tmp_path: Path) -> None:
    text = SMALL.replace("seeds = [0, 1]", "seeds = [0]").replace("\nnone", "\n# none")
    text = text.replace('env.kwargs = { maze = "tmaze", size = 2 }', 'env.id = "drqn_dist/PositionOnlyCartPole-v0"')
    text = text.replace("[axes.memory]", "[elsewhere.short]\nenv.kwargs = { max_episode_steps = 3 }\n[axes.memory]")
    study = run(tmp_path, text)
    outcome = read_outcome(tmp_path / "out", study.cells[0])
    assert outcome is not None
    assert outcome.elsewhere["short"]["scores"] == [3.0] * 5
    assert min(outcome.scores) > 3.0
    other = load_study(write(tmp_path, text.replace("max_episode_steps = 3", "max_episode_steps = 2")))
    assert read_outcome(tmp_path / "out", other.cells[0]) is None, "other games, another outcome"


def test_games_that_are_cut_short_do_not_keep_a_cell_from_finishing(tmp_path: Path) -> None:
    text = SMALL.replace("seeds = [0, 1]", "seeds = [0]").replace("\nnone", "\n# none")
    text = text.replace("episodes = 2 }", "episodes = 2, max_steps = 3 }")
    outcome = read_outcome(tmp_path / "out", run(tmp_path, text).cells[0])
    assert outcome is not None
    assert outcome.episodes == 5
    assert outcome.scores == [0.0] * 5, "the goal is further away than three steps"
    assert outcome.cut_short == 5


def test_probes_are_means_of_the_second_half() -> None:
    lines = [
        {"agent_steps": 10, "probe/churn": 9.0},
        {"agent_steps": 50, "probe/churn": 1.0},
        {"agent_steps": 60},
        {"agent_steps": 100, "probe/churn": 2.0, "probe/staleness_last": 0.5, "losses/td_loss": 3.0},
    ]
    assert _probes(lines, 50) == {"churn": 1.5, "staleness_last": 0.5}


def test_a_curve_keeps_its_last_point_and_at_most_so_many() -> None:
    lines = [{"agent_steps": k, "wall_s": 60.0 * k, "eval/mean_return": k / 7} for k in range(CURVE_POINTS * 2 + 1)]
    points = _curve([{"agent_steps": 0, "wall_s": 0.0}, *lines], "eval/mean_return")
    assert points[-1] == [400, 400.0, 57.14]
    assert points[-2][0] == 397
    assert len(points) <= CURVE_POINTS


FACTS = {
    "learner": {"updates": 1, "inserted_steps": 10},
    "agent_steps": 10,
    "incarnation": 0,
    "replay": [None],
    "wall_s": 150.0,
}
"""That a run can be gone on from."""


def test_a_run_that_went_on_with_the_minutes_it_had_left_is_still_the_one_that_was_asked_for(tmp_path: Path) -> None:
    config = replace(preset("gridworld"), minutes=3.0, run_dir=str(tmp_path))
    run = create_run(config, [])
    run.checkpoints.write(1, {}, FACTS)
    run.write_summary(Summary(10, 10, 1, 150.0, None, None, None, "ab", "signal"))
    run, _ = run.go_on(replace(config, minutes=0.5), 1, 10, [])
    found = _begun_run([run.path], config)
    assert found is not None
    assert found[0] == run
    assert _begun_run([run.path], replace(config, minutes=0.5)) is None


def test_a_run_that_cannot_be_gone_on_from_is_begun_anew_but_not_for_an_error_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(preset("gridworld"), run_dir=str(tmp_path))
    runs = [create_run(config, []) for _ in range(2)]
    for run in runs:
        run.checkpoints.write(1, {}, FACTS)
        run.write_summary(Summary(10, 10, 1, 150.0, None, None, None, "ab", "signal"))
    whole = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.suffix == ".safetensors":
            raise OSError(errno.EIO, "Input/output error")
        return whole(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", read_bytes)
        with pytest.raises(CheckpointUnreadError, match="Input/output error; try again"):
            _begun_run([run.path for run in runs], config)
    assert _begun_run([runs[0].path], config) is not None
    runs[0].checkpoints.write(2, {}, FACTS | {"agent_steps": -1})
    runs[1].checkpoints.paths()[1].write_bytes(b"broken")
    assert _begun_run([run.path for run in runs], config) is None


def test_minutes_bound_a_run_and_not_what_is_left_of_it() -> None:
    config = replace(preset("gridworld"), minutes=3.0)
    spent = Checkpoint(Path(), 0, {}, {"wall_s": 150.0})
    assert _with_time_left(config, spent).minutes == pytest.approx(0.5)
    assert _with_time_left(config, Checkpoint(Path(), 0, {}, {"wall_s": 999.0})).minutes == pytest.approx(0.01)
    assert _with_time_left(replace(config, minutes=None), spent).minutes is None


def begin(folder: Path, text: str) -> subprocess.Popen[bytes]:
    """A study in a process of its own, in the midst of its first run."""
    file = write(folder, text)
    command = [sys.executable, "-m", "drqn_dist.cli", "study", str(file), "--jobs", "1"]
    command += ["--out", str(folder / "out"), "--runs", str(folder / "runs")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | {"COLUMNS": "200"})
    until(lambda: any(folder.glob("runs/gru__0/*/metrics.jsonl")), "the first run to begin")
    return process


LONG = SMALL.replace("1_500", "1_000_000").replace("seeds = [0, 1]", "seeds = [0]")


def test_a_study_that_is_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    out, runs = tmp_path / "out", tmp_path / "runs"
    with begin(tmp_path, LONG) as process:
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=120)
        assert process.returncode == 130
        assert b"the same command goes on" in told
    assert not any(child.is_running() for child in children)
    assert not any(out.glob("cells/*"))
    (folder,) = runs.glob("gru__0/*")
    stopped = open_run(folder).read_summary()
    assert stopped.stopped_by == "signal"

    # The same run goes on. Its bound is a setting too, so that it has to be lowered in both places.
    bound = stopped.agent_steps + 1_500
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"total_steps": 1000000', f'"total_steps": {bound}'))
    study = load_study(write(tmp_path, LONG.replace("1_000_000", str(bound))))
    run_study(study, out, runs, jobs=2)
    resumed = read_outcome(out, study.cells[0])
    assert resumed is not None
    assert resumed.resumed
    assert resumed.agent_steps >= bound
    assert resumed.updates > stopped.updates
    assert [path.name for path in runs.glob("gru__0/*")] == [folder.name]


def test_no_run_outlives_a_study_that_is_killed_and_none_is_lost(tmp_path: Path) -> None:
    with begin(tmp_path, LONG) as process:
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate(timeout=120)
    until(lambda: not any(child.is_running() for child in children), "its runs to end")
    (folder,) = tmp_path.glob("runs/gru__0/*")
    assert open_run(folder).read_summary().stopped_by == "signal"
    assert open_run(folder).checkpoints.latest() is not None


@pytest.mark.slow
def test_the_smallest_study_that_is_shipped_shows_what_memory_is_for(tmp_path: Path) -> None:
    study = load_study(Path(__file__).parents[2] / "studies" / "smallest.toml")
    run_study(study, tmp_path / "out", tmp_path / "runs", jobs=None)
    returns: dict[str, list[float]] = {}
    for cell in study.cells:
        outcome = read_outcome(tmp_path / "out", cell)
        assert outcome is not None
        returns.setdefault(cell.arm, []).append(sum(outcome.scores) / len(outcome.scores))
    assert all(value == 1.0 for value in returns["GRU"]), returns
    assert all(value < 0.8 for value in returns["none"]), (
        returns
    )  # 0.5, and 0.14 is twice the standard error of 50 games
    assert write_report(study, tmp_path / "out").count("| 2 |") == 2
