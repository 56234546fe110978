"""The replay is killed again and again while a run trains, and has everything back each time."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from drqn_dist.codec import decode_header
from drqn_dist.distributed.supervisor import RaySession
from replay_server.segments import read_journal
from tests.chaos.test_deaths import HANG_S, Run
from tests.runs import maze_config, role_processes, until

pytestmark = pytest.mark.ray


def test_no_fragment_is_lost_or_there_twice_however_often_the_replay_dies(local_ray: None, tmp_path: Path) -> None:
    room = {"capacity_steps": 10**6, "samples_per_insert": 2.0}
    config = maze_config(tmp_path, mode="ray", actors=2, total_steps=10**9, replay=room)
    with closing(RaySession(config, hang_s=HANG_S, folder=tmp_path / "run")) as session:
        run = Run(session)
        run.goes_on()
        for death in range(3):
            before = run.inserted()
            run.kill("Replay")
            assert run.events[1].startswith("replay will read the ")
            run.advance_until(lambda: session._replay[0].begun, "the replay to be back")
            assert run.events[-1].startswith("replay is back, and took back ")
            run.reports.clear()
            run.advance_until(lambda: any(r.replay for r in run.reports), "its first pulse")
            first = next(r.replay for r in run.reports if r.replay)
            assert first.stored_steps == first.inserted_steps >= before, f"death {death + 1}"
            run.goes_on()
    until(lambda: not role_processes(), "the role processes to end")
    contents = read_journal(tmp_path / "run" / "replay" / "0")
    assert contents.whole
    headers = [decode_header(record.payload, 10**6) for record in contents.records]
    assert contents.records[-1].inserted_steps == sum(header.num_steps for header in headers)
    assert contents.records[-1].live == len(headers)
    for actor in range(2):
        for env in range(config.actor.envs_per_actor):
            numbers = [h.sequence_no for h in headers if (h.actor_id, h.env_id) == (actor, env)]
            assert len(numbers) == len(set(numbers)), "none is there twice"
            # Calls overtake one another, and the last ones were broken off by the end.
            under_way = config.actor.max_pushes_in_flight
            lost = set(range(max(numbers) - under_way)) - set(numbers)
            assert not lost, f"of {len(numbers)}, the last one {max(numbers)}"
