"""An hour of `drqn-dist train` at full speed: no process grows. `make growth-test`; DRQN_GROWTH_OUT names a folder for
its table and picture."""

from __future__ import annotations

import csv
import os
import signal
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil
import pytest

from tests.runs import until
from tests.test_cli_train import Command, command

MINUTES = float(os.environ.get("DRQN_GROWTH_MINUTES", "60"))
SETTLED = 0.25
"""Of that time: the replay is full, and every buffer has its size."""
LOOK_S = 10.0
GROWTH = 0.02
FLAGS = ["--preset=pong-cpu", "--mode=ray", "--minutes=None", "--stop-at-return=None", "--total-steps=1000000000"]

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(60 * MINUTES + 600),
    pytest.mark.skipif(os.environ.get("DRQN_GROWTH_TEST") != "1", reason="takes an hour: make growth-test"),
]


class Look(NamedTuple):
    """What a process holds."""

    seconds: float
    """Since the run began to train."""
    resident_bytes: int
    files: int
    """Open file descriptors."""
    store_bytes: int
    """Pages of shared memory in use; of the raylet: the object store's."""


def role_of(process: psutil.Process) -> str:
    """Its name in the table; nothing for what comes and goes."""
    with suppress(psutil.Error):
        words = process.cmdline()
        title = words[0] if words else ""
        if title.startswith("ray::"):
            return title.removeprefix("ray::").split(".")[0].split()[0] if "Role" in title else ""
        if "drqn_dist.cli" in words:
            parent = process.parent()
            return "driver" if parent is not None and "drqn_dist.cli" in parent.cmdline() else "keeper"
        if process.name() in ("raylet", "gcs_server"):
            return process.name()
    return ""


def looked_at(run: Command, began_s: float) -> dict[tuple[str, int], Look]:
    """Of each process, by its name and id."""
    root = psutil.Process(run.process.pid)
    looks = {}
    for process in (root, *root.children(recursive=True)):
        if role := role_of(process):
            with suppress(psutil.Error):
                memory = process.memory_info()
                seconds = time.monotonic() - began_s
                looks[role, process.pid] = Look(seconds, memory.rss, process.num_fds(), memory.shared)
    return looks


def grown(looks: list[Look], what: str) -> float:
    """From the median of the first quarter of the settled time to that of the last."""
    settled = [look for look in looks if look.seconds >= SETTLED * 60 * MINUTES]
    part = max(1, len(settled) // 4)
    first, last = (median(getattr(look, what) for look in some) for some in (settled[:part], settled[-part:]))
    return last / max(1, first) - 1


def test_no_process_of_a_long_run_grows(tmp_path: Path) -> None:
    history: defaultdict[tuple[str, int], list[Look]] = defaultdict(list)
    with command(tmp_path, *FLAGS, "--run-dir", str(tmp_path / "runs")) as run:
        run.trains()
        began_s = next_s = time.monotonic()
        while time.monotonic() < began_s + 60 * MINUTES:
            next_s += LOOK_S
            until(lambda: time.monotonic() >= next_s, "the next look", 2 * LOOK_S)  # noqa: B023 (called at once)
            assert run.process.poll() is None, run.stderr
            for key, look in looked_at(run, began_s).items():
                history[key].append(look)
        run.process.send_signal(signal.SIGTERM)
        assert run.ends() == 0, run.stderr
    if folder := os.environ.get("DRQN_GROWTH_OUT"):
        write(history, Path(folder))
    told, wrong = [], []
    for (role, pid), looks in sorted(history.items()):
        memory, files, store = (grown(looks, what) for what in ("resident_bytes", "files", "store_bytes"))
        megabytes = looks[-1].resident_bytes / 1e6
        told.append(f"{role:16} {megabytes:7.0f} MB {memory:+7.2%}   {looks[-1].files:4} files {files:+7.2%}")
        if memory >= GROWTH or files > 0.0 or (role == "raylet" and store >= GROWTH):
            wrong.append(f"{told[-1]}, shared memory {store:+.2%} (process {pid})")
        assert looks[-1].seconds > 60 * MINUTES - 3 * LOOK_S, f"{role} (process {pid}) did not live to the end"
    print("\n" + "\n".join(told))
    assert not wrong, "\n".join(wrong)


def write(history: dict[tuple[str, int], list[Look]], folder: Path) -> None:
    """The table as growth.csv, and growth.png."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "growth.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["process", *Look._fields])
        for (role, _), looks in sorted(history.items()):
            table.writerows([role, round(look.seconds, 1), *look[1:]] for look in looks)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for (role, _), looks in sorted(history.items()):
        axes.plot([look.seconds / 60 for look in looks], [look.resident_bytes / 1e6 for look in looks], label=role)
    axes.set(xlabel="minutes of training", ylabel="resident memory, MB", ylim=(0, None), title="pong-cpu at full speed")
    axes.legend()
    figure.savefig(folder / "growth.png", dpi=120)
