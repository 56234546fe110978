"""`drqn-dist train` while its processes, Ray's and its own, are killed and stopped at random. `make chaos`: Pong, for
ten minutes, beside an undisturbed run; here a maze, for a minute or so."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from drqn_dist.codec import decode_header
from drqn_dist.experiments.run_folder import open_run
from drqn_dist.metrics import read_metrics
from replay_server.segments import read_journal
from tests.runs import until
from tests.test_cli_train import TINY, Command, command

LONG = os.environ.get("DRQN_CHAOS") == "1"
SECONDS = 600.0 if LONG else 50.0
FAULTS = 21 if LONG else 6
PONG = ["--preset=pong-cpu", "--replay.capacity-steps=2000000", "--stop-at-return=None", "--minutes=None"]
ARGUMENTS = PONG if LONG else [*TINY, "--replay.capacity-steps=1000000", "--replay.samples-per-insert=2"]
ROLES = ("ray::Actor", "ray::Replay", "ray::Learner")
CORE = ("raylet", "gcs_server")
RARE = {3: "raylet", 5: "driver", 9: "ray::Evaluator", 12: "gcs_server", 17: "ray::Evaluator"}
"""Faults of these numbers; the short run has six."""

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1_800 if LONG else 400)]


@dataclass
class Faults:
    """What was done to a run."""

    run: Command
    random: random.Random = field(default_factory=lambda: random.Random(0))
    done: Counter[str] = field(default_factory=Counter)

    def one(self, number: int) -> None:
        """What stands in `RARE` dies then, the others in between."""
        kind = RARE.get(number, ROLES[number % len(ROLES)])
        how = self.random.choice(_HOW) if kind.startswith("ray::") else signal.SIGKILL
        found: list[psutil.Process] = []
        until(lambda: bool(found.extend(self._find(kind)) or found), f"a {kind} to be there", 120)
        victim = self.random.choice(found)
        victim.send_signal(how)
        self.done[f"{kind} {how.name}"] += 1

    def _find(self, kind: str) -> list[psutil.Process]:
        # What a dead driver left is a child of the keeper too, for a moment.
        drivers = [p for p in psutil.Process(self.run.process.pid).children() if "drqn_dist.cli" in _command_of(p)]
        if kind == "driver":
            return drivers
        below = [p for driver in drivers for p in driver.children(recursive=True)]
        if kind in CORE:
            return [p for p in below if p.name() == kind]
        return [p for p in below if _command_of(p)[:1] and _command_of(p)[0].startswith(kind)]


def _command_of(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return list(process.cmdline())
    return []


_HOW = (signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP)


def test_a_run_survives_the_death_of_anything_and_accounts_for_every_fragment(tmp_path: Path) -> None:
    if LONG:
        undisturbed = _steps_of(tmp_path / "undisturbed", faults=0)
    steps = _steps_of(tmp_path / "chaos", FAULTS)
    if LONG:
        print(f"\nagent steps: {steps:,} with faults, {undisturbed:,} without: {steps / undisturbed:.2f}")
        assert steps >= 0.6 * undisturbed


def _steps_of(root: Path, faults: int) -> int:
    """Trains for SECONDS with so many faults; checks the accounts, and answers the agent steps."""
    root.mkdir()
    arguments = [*ARGUMENTS, "--mode", "ray", "--total-steps", "100000000", "--checkpoint-period-s", "5"]
    with command(root, *arguments, "--run-dir", str(root / "runs")) as run:
        run.trains()
        bad, end = Faults(run), time.monotonic() + SECONDS
        for number in range(faults):
            time.sleep(SECONDS / (faults + 1))  # not waiting for anything: this is the pace of the faults
            assert run.process.poll() is None, run.stderr
            bad.one(number)
        until(lambda: time.monotonic() >= end, "the end", SECONDS)
        goes_on = _updates(run)
        until(lambda: _updates(run) > goes_on, "updates after the last fault", 180)
        played = _evaluations(run)
        if LONG:
            until(lambda: _evaluations(run) > played, "an evaluation after the last fault", 180)
        run.process.send_signal(signal.SIGTERM)
        assert run.ends() == 0, run.stderr
        folder = run.folder
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["stopped_by"] == "signal"
    newest = open_run(folder).checkpoints.latest()
    assert newest is not None
    assert newest.updates == summary["updates"]
    contents = read_journal(folder / "replay" / "0")
    assert not contents.missing
    assert not contents.damaged_bytes
    headers = [decode_header(record.payload, 2**26) for record in contents.records]
    told = Counter((h.actor_id, h.env_id, h.sequence_no) for h in headers)
    assert set(told.values()) == {1}, "no fragment is there twice"
    # Every accepted fragment is counted once, and is still there: nothing was evicted.
    assert contents.records[-1].live == len(headers)
    assert contents.records[-1].inserted_steps == sum(header.num_steps for header in headers)
    counted = newest.meta["replay"][0]["limiter"]["inserted_steps"]
    assert contents.records[-1].inserted_steps >= counted
    print(f"\n{dict(bad.done)}: {len(headers):,} fragments, {counted:,} steps, {newest.updates:,} updates")
    return int(contents.records[-1].inserted_steps)


def _updates(run: Command) -> int:
    return max((int(path.stem.split("_")[1]) for path in run.folder.glob("checkpoints/*.safetensors")), default=-1)


def _evaluations(run: Command) -> int:
    return sum("eval/mean_return" in line for line in read_metrics(run.folder))
