"""Many more actors than cores, for minutes: nobody is lost, nothing grows, the replay ratio holds. `make soak-test`."""

from __future__ import annotations

import json
import os
import time
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from drqn_dist.distributed.supervisor import RaySession
from drqn_dist.presets import preset
from drqn_dist.training.session import Report
from replay_server.stats import ReplayStats

ACTORS = 32
SECONDS = 300.0
START_S = 180.0

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(1_200),
    pytest.mark.skipif(os.environ.get("DRQN_SOAK_TEST") != "1", reason="takes minutes: make soak-test"),
]


class Totals:
    """What the roles have told so far."""

    def __init__(self) -> None:
        self.pushed_steps = self.fragments = 0
        self.replay: ReplayStats | None = None
        self.acting: set[int] = set()
        """Indices of the actors that have stepped."""
        self.events: list[str] = []

    def add(self, report: Report) -> None:
        self.pushed_steps += sum(stats.agent_steps for stats in report.actors)
        self.acting |= {stats.index for stats in report.actors if stats.agent_steps}
        self.fragments += sum(stats.fragments for stats in report.actors)
        self.replay = report.replay or self.replay
        self.events += report.events


def resident_bytes() -> int:
    """Of all processes that are ours; pages that several share count in each."""
    total = 0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.Error):
            total += process.memory_info().rss
    return total


def test_32_actors_on_one_machine_lose_nothing_and_do_not_grow(tmp_path: Path) -> None:
    config = preset("gridworld")
    config = replace(
        config,
        actors=ACTORS,
        total_steps=10**9,
        minutes=None,
        stop_at_return=None,
        run_dir=str(tmp_path),
        actor=replace(config.actor, envs_per_actor=2),
        eval=replace(config.eval, period_updates=None),
    )
    began, totals = time.monotonic(), Totals()
    with closing(RaySession(config)) as session:
        while len(totals.acting) < ACTORS or totals.replay is None or not totals.replay.sampled_steps:
            totals.add(session.advance(0.5))
            assert time.monotonic() < began + START_S, f"{len(totals.acting)} actors after {START_S:g} s"
        started_s = time.monotonic() - began
        # Memory settles when the replay is full and every actor has made its first steps.
        while totals.replay.inserted_steps == totals.replay.stored_steps or time.monotonic() < began + started_s + 30:
            totals.add(session.advance(0.5))
            assert time.monotonic() < began + 600
        settled, bytes_then, steps_then, at = totals.replay, resident_bytes(), totals.pushed_steps, time.monotonic()
        missing: list[int] = []
        while time.monotonic() < at + SECONDS:
            totals.add(session.advance(0.5))
            if time.monotonic() > at + SECONDS - 30:
                missing.append(totals.replay.missing)
        replay, grown = totals.replay, resident_bytes() / bytes_then - 1
        seconds, steps = time.monotonic() - at, totals.pushed_steps - steps_then
    counted = replay.counted_steps - settled.counted_steps
    ratio = (replay.sampled_steps - settled.sampled_steps) / counted
    print(
        json.dumps(
            {
                "actors": ACTORS,
                "started_s": started_s,
                "seconds": seconds,
                "agent_steps_per_s": steps / seconds,
                "samples_per_insert": ratio,
                "samples_per_insert_wanted": config.replay.samples_per_insert,
                "memory_bytes": bytes_then,
                "memory_growth": grown,
                "inserted_steps": replay.inserted_steps,
                "actor_steps": totals.pushed_steps,
                "duplicates": replay.duplicates,
                "rejected": replay.rejected,
                "missing": min(missing),
                "events": totals.events,
            }
        )
    )
    assert not totals.events, "an actor failed"
    assert (replay.duplicates, replay.rejected) == (0, 0)
    # Nothing is lost: a fragment that has not come waits in a call that later ones overtook, but soon it comes.
    envs = config.actor.envs_per_actor
    assert min(missing) == 0
    # What is still being cut, on its way or not yet told.
    on_the_way = config.actor.max_pushes_in_flight + 2 * envs
    assert abs(totals.pushed_steps - replay.inserted_steps) <= ACTORS * on_the_way * config.window.fragment
    assert ratio == pytest.approx(config.replay.samples_per_insert, rel=0.02)
    assert grown < 0.05
