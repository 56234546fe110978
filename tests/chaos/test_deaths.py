"""Processes of a run are killed or stopped while it trains, one after the other."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import pytest

from drqn_dist.distributed.supervisor import RaySession
from drqn_dist.errors import RoleFailedError
from drqn_dist.training.session import Report
from tests.runs import maze_config, role_processes, until

pytestmark = pytest.mark.ray

HANG_S = 12.0
"""Long enough for a busy machine."""


class Run:
    """A session under way, with everything that it reported."""

    def __init__(self, session: RaySession) -> None:
        self.session = session
        self.reports: list[Report] = []
        self.updates = 0

    @property
    def events(self) -> list[str]:
        return [event for report in self.reports for event in report.events]

    def advance_until(self, condition: Callable[[], bool], what: str, seconds: float = 240.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}; events: {self.events}"
            self.reports.append(self.session.advance(0.5))
            for piece in self.reports[-1].learner:
                self.updates = piece.updates

    def inserted(self) -> int:
        return max((r.replay.inserted_steps for r in self.reports if r.replay), default=0)

    def goes_on(self) -> None:
        """Agent steps and updates grow."""
        steps = self.session.agent_steps + 100
        self.advance_until(lambda: self.session.agent_steps >= steps, "agent steps to grow")
        self.reports.clear()
        self.advance_until(
            lambda: sum(piece.new_updates for r in self.reports for piece in r.learner) >= 20, "updates to grow"
        )

    def kill(self, role: str) -> None:
        """Kills the one process of this role, and lets the run notice it."""
        self.reports.clear()
        (process,) = role_processes(role)
        process.kill()
        self.advance_until(lambda: bool(self.events), f"an event about the {role}")


@pytest.fixture(scope="module")
def run(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    config = maze_config(tmp_path_factory.mktemp("runs"), mode="ray", total_steps=10**9, eval={"period_updates": 200})
    session = RaySession(config, hang_s=HANG_S)
    try:
        run = Run(session)
        run.goes_on()
        yield run
    finally:
        session.close()
    until(lambda: not role_processes(), "the role processes to end")


def test_a_killed_actor_is_replaced_by_its_next_incarnation(run: Run) -> None:
    before = run.session.save().meta["incarnation"]
    run.kill("Actor")
    assert run.events[0].startswith("actor 0 failed (failure 1 within 3600 s), starting it again in 0 s: ")
    run.goes_on()
    assert run.session.save().meta["incarnation"] == before + 1


def test_a_killed_learner_comes_back_with_the_last_saved_state(run: Run) -> None:
    saved = run.session.save().meta["learner"]["updates"]
    run.advance_until(lambda: run.updates >= saved + 20, "more updates")
    run.kill("Learner")
    assert run.events[0].startswith("learner failed (failure ")
    assert run.events[1].startswith(f"learner goes on from update {saved:,}, where it was saved last: ")
    run.reports.clear()
    run.advance_until(lambda: any(r.learner for r in run.reports), "the new learner's first piece")
    first = next(piece for r in run.reports for piece in r.learner)
    assert first.updates - first.new_updates == saved
    run.goes_on()


def test_saving_outlives_a_learner_that_dies_just_then(run: Run) -> None:
    before = run.session.save().meta["learner"]["updates"]
    run.advance_until(lambda: run.updates > before, "more updates")
    (process,) = role_processes("Learner")
    process.kill()
    assert run.session.save().meta["learner"]["updates"] >= before
    run.goes_on()


def test_a_killed_replay_fills_again_and_keeps_its_counters(run: Run) -> None:
    run.advance_until(lambda: run.inserted() > 500, "some inserts")
    before = run.inserted()
    run.kill("Replay")
    assert run.events[0].startswith("replay failed (failure ")
    run.reports.clear()
    run.advance_until(lambda: any(r.replay for r in run.reports), "the new replay's first pulse")
    first = next(r.replay for r in run.reports if r.replay)
    assert first.stored_steps < 1_000, "it begins empty"
    assert first.inserted_steps >= before
    run.goes_on()
    run.reports.clear()
    run.advance_until(lambda: any(r.replay and r.replay.stored_steps > 500 for r in run.reports), "the replay to fill")
    # The fill does not count, and earns no burst: the ratio holds over the run.
    last = next(r.replay for r in reversed(run.reports) if r.replay)
    assert last.samples_per_insert == pytest.approx(8.0, rel=0.1)


def test_a_killed_evaluator_is_replaced(run: Run) -> None:
    run.advance_until(lambda: bool(role_processes("Evaluator")), "an evaluator")
    run.kill("Evaluator")
    assert run.events[0].startswith("evaluator failed (failure ")
    run.reports.clear()
    run.advance_until(lambda: any(r.evaluations for r in run.reports), "another evaluation")


def test_processes_that_hang_are_killed_and_replaced(run: Run) -> None:
    stopped = [process for role in ("Actor", "Replay", "Learner") for process in role_processes(role)]
    assert len(stopped) == 3
    run.reports.clear()
    for process in stopped:
        process.send_signal(signal.SIGSTOP)
    run.advance_until(
        lambda: {event.split()[0] for event in run.events} >= {"actor", "replay", "learner"},
        "events about all three",
    )
    failed = [event for event in run.events if " failed (" in event]
    assert len(failed) >= 3
    assert all("no sign of life for" in event for event in failed)
    run.goes_on()
    until(lambda: not any(process.is_running() for process in stopped), "the stopped processes to be gone")


def test_nobody_is_blamed_for_the_time_that_an_evaluation_took(run: Run) -> None:
    (actor,) = run.session._actors
    run.advance_until(lambda: actor.under_way["run"] > 0 and not actor.under_way["pulse"], "a piece under way")
    asked = time.monotonic()
    for name in ("seen_s", "moved_s", "pulse_s"):  # the supervisor was busy elsewhere, and collected no answers
        setattr(actor, name, getattr(actor, name) - 10 * HANG_S)
    run.session._hand_out(actor)
    assert actor.seen_s >= asked, "silence counts from the pulse"
    assert actor.moved_s >= asked, "and so does work that may have stood still, because the replay rested too"
    assert not actor.hangs(time.monotonic(), HANG_S)


def test_a_role_that_keeps_dying_ends_the_run(run: Run) -> None:
    (actor,) = run.session._actors
    actor.failures[:] = [(time.monotonic(), "a node that has gone")] * 5  # these do not count
    run.kill("Actor")
    run.goes_on()
    actor.failures[:] = [(time.monotonic(), actor.node)] * 5
    with pytest.raises(RoleFailedError, match=r"actor 0 failed too often \(failure 6 within 3600 s, 5 are allowed\)"):
        run.kill("Actor")
