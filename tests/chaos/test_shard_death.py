"""One shard of a replay is killed while a run trains."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import psutil
import pytest

from drqn_dist.distributed.supervisor import RaySession
from tests.chaos.test_deaths import HANG_S, Run
from tests.runs import maze_config, role_processes, until

pytestmark = pytest.mark.ray


def test_a_killed_shard_leaves_the_other_to_serve_and_comes_back_empty(local_ray: None, tmp_path: Path) -> None:
    config = maze_config(tmp_path, mode="ray", actors=2, total_steps=10**9, replay={"shards": 2})
    with closing(RaySession(config, hang_s=HANG_S)) as session:
        run = Run(session)
        run.goes_on()
        shards = session._replay
        run.advance_until(lambda: all(shard.process for shard in shards), "both shards' pulses")
        before = [stats.inserted_steps for stats in session._replay_stats if stats]
        run.reports.clear()
        assert shards[1].process is not None
        psutil.Process(shards[1].process).kill()
        run.advance_until(lambda: bool(run.events), "an event about the shard")
        assert run.events[0].startswith("replay 1 failed (failure 1 within 3600 s), starting it again in 0 s: ")
        run.advance_until(lambda: shards[1].begun and shards[1].process is not None, "the shard to be back")
        told = run.events
        assert told[1].startswith("replay 1 lost the ")
        assert told[1].endswith(" steps that it held, 1 of the others serve on")
        assert told[-1] == "replay 1 is back, and fills again"
        run.goes_on()

        def stored() -> list[int]:
            return [stats.stored_steps for stats in session._replay_stats if stats]

        run.advance_until(lambda: min(stored()) > 100, "both shards to be fed")
        after = [stats.inserted_steps for stats in session._replay_stats if stats]
        assert after[0] > before[0]
        assert after[1] > before[1], "its counters go on"
        assert all(event.startswith("replay 1 ") for event in run.events)
    until(lambda: not role_processes(), "the role processes to end")
