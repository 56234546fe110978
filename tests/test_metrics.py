from __future__ import annotations

import errno
import json
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from drqn_dist.errors import RunFolderError
from drqn_dist.metrics import MetricsLog, Stopwatch, read_metrics


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write({"losses/td_loss": 0.5}, agent_steps=10, frames=40, wall_s=1.5)
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    log.close()
    assert line == {"agent_steps": 10, "frames": 40, "wall_s": 1.5, "losses/td_loss": 0.5}


def test_tensorboard_shows_the_same_values_over_agent_steps(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write({"charts/episodic_return": -20.5}, agent_steps=10, frames=40, wall_s=1.5)
    log.write({"charts/episodic_return": -19.5}, agent_steps=20, frames=80, wall_s=3.0)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("charts/episodic_return")] == [(10, -20.5), (20, -19.5)]
    assert [(e.step, e.value) for e in events.Scalars("time/frames")] == [(10, 40.0), (20, 80.0)]


def test_tensorboard_goes_on_after_a_disk_that_was_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(tmp_path)
    log.write({"charts/episodic_return": 1.0}, 10, 40, 1.0)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(SummaryWriter, "add_scalar", full)
        for steps in (20, 30):
            with pytest.raises(OSError, match="No space"):
                log.write({"charts/episodic_return": 2.0}, steps, 80, 2.0)
    log.write({"charts/episodic_return": 4.0}, 40, 160, 4.0)
    log.close()
    assert [line["agent_steps"] for line in read_metrics(tmp_path)] == [10, 20, 30, 40]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 3, "each with a writer of its own"


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write({"losses/td_loss": float("nan"), "losses/grad_norm": float("inf")}, 1, 4, 0.1)
    log.close()
    assert read_metrics(tmp_path) == [{"agent_steps": 1, "frames": 4, "wall_s": 0.1}]


def test_a_resumed_run_appends_after_dropping_a_line_cut_short_by_a_kill(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"agent_steps": 1, "frames": 4, "wall_s": 1.0}\n{"agent_st')
    log = MetricsLog(tmp_path, resumed_at_steps=1)
    log.write({}, 2, 8, 2.0)
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["agent_steps"] for line in lines] == [1, 2]


def test_reading_skips_a_line_cut_short_and_lets_a_resumed_run_replace_what_it_repeats(tmp_path: Path) -> None:
    steps = [100, 200, 300, 150, 250]  # killed at 300, resumed from a checkpoint at 120
    lines = [{"agent_steps": s, "frames": s, "wall_s": 0.5, "order": i} for i, s in enumerate(steps)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_bytes(text.encode() + b'{"agent_steps": 35\0\xff')
    assert [(line["agent_steps"], line["order"]) for line in read_metrics(tmp_path)] == [(100, 0), (150, 3), (250, 4)]


BROKEN = {
    "rubbish": b"rubbish",
    "no text": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "steps as text": b'{"agent_steps": "1", "frames": 4, "wall_s": 0.5}',
    "a long number": b'{"agent_steps": %s, "frames": 4, "wall_s": 0.5}' % (b"9" * 5_000),
    "a number alone": b"3",
    "no time": b'{"agent_steps": 1, "frames": 4}',
    "nothing as a value": b'{"agent_steps": 1, "frames": 4, "wall_s": 0.5, "eval/mean_return": null}',
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_line_in_the_middle_is_named(tmp_path: Path, what: str) -> None:
    good = b'{"agent_steps": 1, "frames": 4, "wall_s": 0.5}\n'
    (tmp_path / "metrics.jsonl").write_bytes(good + BROKEN[what] + b"\n" + good)
    with pytest.raises(RunFolderError, match="line 2 of") as refused:
        read_metrics(tmp_path)
    assert len(str(refused.value)) < 1_000


def test_a_folder_without_metrics_or_that_is_missing_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no metrics\.jsonl"):
        read_metrics(tmp_path)
    with pytest.raises(RunFolderError, match="cannot write metrics"):
        MetricsLog(tmp_path / "none")


def test_each_lap_begins_where_the_one_before_ended() -> None:
    began = time.perf_counter()
    watch = Stopwatch()
    deadline = time.process_time() + 0.05
    while time.process_time() < deadline:
        pass
    wall, cpu = watch.lap()
    second_wall, second_cpu = watch.lap()
    assert cpu >= 0.04
    assert second_cpu < 0.04
    assert 0 < wall + second_wall <= time.perf_counter() - began
