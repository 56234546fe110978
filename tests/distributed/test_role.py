from __future__ import annotations

import pytest

from drqn_dist.distributed.role import MAX_FAILURES, WINDOW_S, Role, RoleKind, decide
from drqn_dist.distributed.supervisor import HANG_S, START_S


@pytest.mark.parametrize(
    ("kind", "has_pulse", "waits_to_begin"),
    [
        (RoleKind.LEARNER, False, True),
        (RoleKind.REPLAY, True, True),
        (RoleKind.ACTOR, True, False),
        (RoleKind.EVALUATOR, True, False),
    ],
)
def test_what_a_role_needs_depends_on_its_kind_and_not_on_its_name(
    kind: RoleKind, has_pulse: bool, waits_to_begin: bool
) -> None:
    role = Role("actor of the replay", kind, 3)
    assert (role.has_pulse, role.waits_to_begin) == (has_pulse, waits_to_begin)


def test_delays_grow_with_every_failure_until_the_run_is_ended() -> None:
    decisions = [decide("actor 3", [1.0] * n, 1.0, "it died") for n in range(1, 7)]
    assert [d.action for d in decisions] == ["restart"] * 5 + ["stop"]
    assert [d.delay_s for d in decisions[:5]] == [0.0, 1.0, 2.0, 4.0, 8.0]


def test_the_reason_carries_role_numbers_and_cause() -> None:
    assert decide("learner", [5.0, 9.0], 10.0, "out of memory").reason == (
        "learner failed (failure 2 within 3600 s), starting it again in 1 s: out of memory"
    )
    assert decide("replay", [0.0] * 6, 0.0, "gone").reason == (
        "replay failed too often (failure 6 within 3600 s, 5 are allowed): gone"
    )


@pytest.mark.parametrize("between_s", [HANG_S, START_S])
def test_a_role_that_never_answers_ends_the_run_though_each_failure_takes_its_time(between_s: float) -> None:
    failed_at = [n * (between_s + 30.0) for n in range(1, MAX_FAILURES + 2)]
    assert decide("replay", failed_at[:-1], failed_at[-2], "silent").action == "restart"
    assert decide("replay", failed_at, failed_at[-1], "silent").action == "stop"


@pytest.mark.parametrize(("age_s", "counted"), [(WINDOW_S, True), (WINDOW_S + 1, False)])
def test_old_failures_are_forgiven(age_s: float, counted: bool) -> None:
    now = 10_000.0
    decision = decide("actor 0", [now - age_s] * MAX_FAILURES + [now], now, "it died")
    assert decision.action == ("stop" if counted else "restart")
    assert counted or decision.delay_s == 0.0


def test_a_node_that_leaves_is_no_failure_of_its_roles() -> None:
    decision = decide("actor 3", [1.0] * 99, 1.0, "it died", node_lost=True)
    assert (decision.action, decision.delay_s) == ("restart", 0.0)
    assert decision.reason == "actor 3 went with its node, starting it again where there is room: it died"
