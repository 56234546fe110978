from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drqn_dist.envs.make import env_spec
from drqn_dist.presets import PRESETS, preset
from drqn_dist.scaling.shard import STORED, alone, measure_shard
from tests.runs import maze_config, role_processes, until


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_leaves_room_for_its_windows_in_the_shard_that_is_measured(name: str) -> None:
    config = alone(preset(name))
    assert config.replay.capacity_steps == STORED * config.window.fragment


@pytest.mark.ray
def test_calls_cost_cpu_time_of_the_shards_process(local_ray: None, tmp_path: Path, monkeypatch: Any) -> None:
    config = maze_config(tmp_path, mode="ray", actors=4, actor={"envs_per_actor": 4}, replay={"shards": 2})
    found = measure_shard(config, env_spec(config.env), calls=100, repeats=3)
    # A call is work for Ray's threads too; a fragment of 8 steps of a maze is little beside it.
    assert 5e-5 < found.push_call_s < 2e-2
    assert 1e-5 < found.fragment_s < found.push_call_s
    assert 5e-5 < found.sample_call_s < 2e-2
    assert 5e-5 < found.priorities_call_s < 2e-2
    assert found.batches_per_call == 2
    until(lambda: not role_processes("Replay"), "the shard to end")
