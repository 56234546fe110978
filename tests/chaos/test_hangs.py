"""Roles whose processes live and answer, while their work stands still; and such as are only slow."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from drqn_dist.distributed import role
from drqn_dist.distributed.supervisor import RaySession
from tests.chaos.test_deaths import Run
from tests.runs import maze_config, role_processes, until

pytestmark = pytest.mark.ray

HANG_S = 6.0


def config_of(root: Path, **kwargs: Any) -> Any:
    env = {"id": "tests.envs.fakes:drqn_test/Stuck-v0", "kwargs": {"file": str(root / "stuck"), **kwargs}}
    return maze_config(root, mode="ray", total_steps=10**9, env=env)


def test_an_environment_that_never_answers_costs_one_actor_its_incarnation(local_ray: None, tmp_path: Path) -> None:
    with closing(RaySession(config_of(tmp_path), hang_s=HANG_S)) as session:
        run = Run(session)
        run.goes_on()
        run.reports.clear()
        (tmp_path / "stuck").touch()
        run.advance_until(lambda: bool(run.events), "an event about the actor")
        (event,) = run.events
        assert event.startswith(
            "actor 0 failed (failure 1 within 3600 s), starting it again in 0 s: its process answer"
        )
        run.goes_on()


def test_an_actor_that_the_rate_limiter_keeps_waiting_does_not_hang(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(role, "PATIENCE", 1.0)
    config = maze_config(tmp_path, mode="ray", total_steps=10**9, learner={"publish_period_updates": 10**6})
    with closing(RaySession(config, hang_s=HANG_S)) as session:
        run = Run(session)
        run.goes_on()
        (actor,) = session._actors
        # No learner trains, as far as the replay can see: the supervisor hands it no more work.
        session._roles.remove(session._learner)
        stands = (actor.moves, time.monotonic())

        def stood_long() -> bool:
            nonlocal stands
            if actor.moves != stands[0]:
                stands = (actor.moves, time.monotonic())
            return actor.under_way["run"] > 0 and time.monotonic() - stands[1] > 2 * HANG_S

        run.reports.clear()
        run.advance_until(stood_long, "the actor to wait for the replay", 90.0)
        assert run.events == [], "nobody is to blame"


def test_slow_is_not_dead(local_ray: None, tmp_path: Path) -> None:
    """Each fortieth step takes four seconds, two thirds of what would be a hang; nothing else is slow."""
    config = config_of(tmp_path, slow=40, slow_s=4.0)
    config = replace(config, actor=replace(config.actor, envs_per_actor=1))
    with closing(RaySession(config, hang_s=HANG_S)) as session:
        run = Run(session)
        run.advance_until(lambda: session.agent_steps >= 200, "agent steps")
        assert run.events == []
        (actor,) = session._actors
        assert actor.slowest_s >= 3.0


def test_a_learner_that_is_stopped_while_it_saves_is_replaced(local_ray: None, tmp_path: Path) -> None:
    with closing(RaySession(maze_config(tmp_path, mode="ray", total_steps=10**9), hang_s=HANG_S)) as session:
        run = Run(session)
        run.goes_on()
        saved = session.save().meta["learner"]["updates"]
        (process,) = role_processes("Learner")
        process.send_signal(signal.SIGSTOP)
        assert session.save().meta["learner"]["updates"] >= saved
        run.reports.clear()
        run.goes_on()
        until(lambda: not process.is_running(), "the stopped process to be gone")


def test_nobody_is_blamed_for_a_machine_that_stood_still(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Roles and supervisor stand still for longer than a hang; the roles come back a second after the supervisor."""
    monkeypatch.setattr(role, "PATIENCE", 1.0)
    with closing(RaySession(maze_config(tmp_path, mode="ray", total_steps=10**9), hang_s=HANG_S)) as session:
        run = Run(session)
        run.goes_on()
        run.reports.clear()
        processes = [process for name in ("Learner", "Replay", "Actor") for process in role_processes(name)]
        assert len(processes) >= 3
        for process in processes:
            process.suspend()

        def resume() -> None:
            for process in processes:
                with suppress(psutil.Error):
                    process.resume()

        back = threading.Timer(1.0, resume)
        try:
            end = time.monotonic() + 1.5 * HANG_S
            until(lambda: time.monotonic() >= end, "the end of the pause", 2 * HANG_S)
        finally:
            back.start()
        steps = session.agent_steps + 100
        run.advance_until(lambda: session.agent_steps >= steps, "agent steps to grow")
        back.join()
        assert run.events == []
