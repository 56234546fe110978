from __future__ import annotations

import pytest

from drqn_dist.distributed.role import HANG_S, MAX_FAILURES, START_S, WINDOW_S, Role, RoleKind, decide


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


def acting(**changes: float) -> Role:
    """An actor that had done 7 steps at 100 s, and has a piece of work under way."""
    role = Role("actor 0", RoleKind.ACTOR, begun=True, seen_s=100.0, moves=7, moved_s=100.0)
    role.under_way["run"] = 1
    for name, value in changes.items():
        setattr(role, name, value)
    return role


def test_silence_is_a_hang_after_the_limit_and_not_before() -> None:
    assert acting().hangs(119.9, 20.0) == ""
    assert acting().hangs(121.0, 20.0) == "no sign of life for 21 s"


def test_work_that_stands_still_is_a_hang_though_the_process_answers() -> None:
    role = acting(seen_s=119.0)
    assert role.hangs(119.9, 20.0) == ""
    assert role.hangs(121.0, 20.0) == "its process answers, but no step was done for 21 s"


def test_a_silent_process_is_not_said_to_answer() -> None:
    role = acting(seen_s=101.0)  # asked a second after its last step
    assert role.hangs(120.5, 20.0) == ""
    assert role.hangs(121.5, 20.0) == "no sign of life for 20 s"


def test_who_has_nothing_to_do_does_not_hang() -> None:
    role = acting(seen_s=119.0)
    role.under_way.clear()
    role.under_way["pulse"] = 1
    assert role.hangs(138.0, 20.0) == "", "it rests, and answers"
    role.under_way.clear()
    assert role.hangs(1e6, 20.0) == "", "nothing was asked"


def test_what_was_slow_before_may_be_ten_times_as_slow() -> None:
    role = acting()
    role.moved(107.0, 8)
    role.moved(108.0, 9)
    assert role.slowest_s == 7.0
    role.answered(108.0)
    assert role.slowest_s == 8.0, "the answer took from 100 to 108"
    assert role.hangs(187.9, 20.0) == ""
    assert role.hangs(188.1, 20.0) == "no sign of life for 80 s"


def test_the_same_count_is_no_movement() -> None:
    role = acting()
    role.moved(150.0, 7)
    assert role.moved_s == 100.0


def test_who_starts_has_more_time_and_that_is_not_its_pace() -> None:
    silent = acting(begun=False, moves=None)
    assert silent.hangs(100.0 + START_S, 20.0) == ""
    assert silent.hangs(101.0 + START_S, 20.0) == "no sign of life for 301 s"
    silent.answered(350.0)
    silent.moved(360.0, 1)
    assert (silent.slowest_s, silent.moved_s) == (0.0, 360.0)


def test_the_first_step_may_have_to_make_environments() -> None:
    role = acting(moves=0, seen_s=399.0)
    assert role.hangs(399.0, 20.0) == ""
    assert role.hangs(401.0, 20.0) == "its process answers, but no step was done for 301 s"
    role.moved(130.0, 1)
    assert role.slowest_s == 30.0, "and another may take as long"


def test_who_waits_for_a_place_is_not_said_to_answer() -> None:
    role = acting(begun=False, moves=None, moved_s=0.0, seen_s=399.0)
    assert role.hangs(400.0, 20.0) == ""


def test_the_first_piece_of_a_learner_is_not_its_pace() -> None:
    learner = Role("learner", RoleKind.LEARNER, begun=True, seen_s=100.0)  # its first piece compiles
    learner.under_way["run"] = 2
    assert learner.hangs(100.0 + START_S, 20.0) == ""
    learner.trained(1)
    learner.answered(400.0)
    assert learner.slowest_s == 0.0, "that was the first"
    assert learner.hangs(400.0 + START_S, 20.0) == "", "the second may be as slow, and is its pace"
    learner.trained(2)
    learner.answered(430.0)
    assert learner.slowest_s == 30.0
    assert learner.hangs(430.0 + 299.0, 20.0) == ""
    assert learner.hangs(430.0 + 301.0, 20.0) == "no sign of life for 301 s"


def test_a_learner_of_a_usual_pace_is_missed_soon() -> None:
    learner = Role("learner", RoleKind.LEARNER, begun=True, seen_s=100.0)
    learner.under_way["run"] = 2
    for updates, at_s in ((5, 160.0), (30, 161.0), (55, 162.0)):
        learner.trained(updates)
        learner.answered(at_s)
    assert learner.slowest_s == 1.0
    assert learner.hangs(181.0, 20.0) == ""
    assert learner.hangs(183.0, 20.0) == "no sign of life for 21 s"


def test_a_replay_that_was_slow_may_be_slow_again() -> None:
    replay = Role("replay", RoleKind.REPLAY, seen_s=0.0)
    replay.under_way["pulse"] = 1
    replay.answered(90.0)
    assert replay.slowest_s == 0.0, "it read its journal"
    replay.answered(105.0)
    assert replay.hangs(105.0 + 149.0, 20.0) == ""
    assert replay.hangs(105.0 + 151.0, 20.0) == "no sign of life for 151 s"


def test_a_replacement_begins_with_a_clean_record() -> None:
    role = acting(slowest_s=50.0, process=3, node="here")
    role.started_anew(200.0)
    assert (role.begun, role.moves, role.slowest_s, role.process, role.node) == (False, None, 0.0, None, None)
    assert role.started_s == 200.0


def test_one_stall_does_not_blunt_for_ever() -> None:
    replay = Role("replay", RoleKind.REPLAY, begun=True, seen_s=0.0)
    replay.under_way["pulse"] = 1
    replay.answered(15.0)
    assert replay.hangs(15.0 + 149.0, 20.0) == ""
    for second in range(200):  # 15 s times 0.98 to the power of 200 is 0.26 s
        replay.seen_s = 16.0 + second
        replay.answered(16.1 + second)
    assert replay.hangs(replay.seen_s + 21.0, 20.0) == "no sign of life for 21 s"
