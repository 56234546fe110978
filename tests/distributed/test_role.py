from __future__ import annotations

import pytest

from drqn_dist.distributed.role import Role, RoleKind


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
