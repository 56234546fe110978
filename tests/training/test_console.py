from __future__ import annotations

import io
import sys
from contextlib import suppress

import pytest
from rich.console import Console

from drqn_dist.training.console import Progress, plain_line

VALUES = {
    "agent_steps": 123_456.0,
    "total_steps": 1e6,
    "frames": 4 * 123_456.0,
    "replay/fill": 0.61,
    "charts/epsilon": 0.0444,
    "charts/episodic_return": -18.25,
    "eval/mean_return": None,
    "eta_s": 3 * 3600 + 4 * 60 + 5.2,
}


class _Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def _plain(period_s: float) -> tuple[Progress, io.StringIO, _Clock]:
    stream, clock = io.StringIO(), _Clock()
    return Progress("Pong", period_s, Console(file=stream, width=40), clock), stream, clock


def test_a_plain_line_names_every_known_value_and_no_other() -> None:
    assert plain_line(VALUES) == (
        "steps 123,456  left 3:04:05  frames 493,824  return -18.25  replay 61%  epsilon 0.044"
    )


def test_plain_mode_prints_at_most_once_in_a_period() -> None:
    progress, stream, clock = _plain(period_s=5.0)
    with progress:
        for tick in range(100):
            clock.now_s = tick * 0.1
            progress.update({"agent_steps": float(tick)})
    assert stream.getvalue().splitlines() == ["steps 0", "steps 50"]


def test_values_that_are_not_named_again_stay() -> None:
    progress, stream, clock = _plain(period_s=1.0)
    with progress:
        progress.update({"agent_steps": 1.0, "eval/mean_return": -21.0})
        clock.now_s = 1.0
        progress.update({"agent_steps": 2.0})
    assert stream.getvalue().splitlines()[-1] == "steps 2  eval -21.00"


def test_a_message_is_one_line_whatever_its_length_and_brackets() -> None:
    progress, stream, _ = _plain(period_s=1.0)
    progress.message("[actor 3] " + "restarted " * 20)
    assert stream.getvalue().splitlines() == ["[actor 3] " + "restarted " * 20]


def test_a_terminal_shows_a_table_with_all_values_and_messages_above_it() -> None:
    stream = io.StringIO()
    with Progress("ALE/Pong-v5", 5.0, Console(file=stream, force_terminal=True, width=90)) as progress:
        progress.update(VALUES)
        progress.message("evaluation started")
    shown = stream.getvalue()
    for text in ("ALE/Pong-v5", "123,456", "-18.25", "3:04:05", "61%", "evaluation started"):
        assert text in shown


class _Unread(io.StringIO):
    """The write end of a pipe whose reader is gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_run_goes_on_when_nobody_reads_its_messages_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", _Unread())
    with Progress("Pong", period_s=0.0) as progress:
        for _ in range(3):
            progress.message("evaluation")
            progress.update({"agent_steps": 1.0})


def test_a_run_goes_on_when_its_messages_go_to_a_full_disk() -> None:
    went_on = False
    with suppress(OSError), open("/dev/full", "w") as full:  # closing it fails too
        with Progress("Pong", 0.0, Console(file=full)) as progress:
            for _ in range(3):
                progress.message("evaluation")
                progress.update({"agent_steps": 1.0})
        went_on = True
    assert went_on
