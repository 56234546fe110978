"""How many actors fit. Placement itself: tests/integration/test_cluster.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.util.placement_group import PlacementGroup

from drqn_dist.distributed import placement
from drqn_dist.distributed.supervisor import RaySession
from drqn_dist.errors import ConfigError
from tests.runs import maze_config


@pytest.mark.parametrize(("cores", "shards", "actors"), [(8, 1, 7), (2, 1, 1), (1, 1, 1), (2, 3, 3)])
def test_this_machine_holds_an_actor_for_each_cpu_but_one(
    cores: int, shards: int, actors: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "usable_cores", lambda: cores)
    config = maze_config(tmp_path, actors=None, mode="ray", replay={"shards": shards})
    assert placement.fitting_actors(config) == actors


@pytest.mark.parametrize(("free", "actors"), [({"CPU": 40.0}, 36), ({"CPU": 5.5}, 2), ({}, 2)])
def test_a_cluster_holds_an_actor_for_each_cpu_that_is_free_beside_the_other_roles(
    free: dict[str, float], actors: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "LocalRay", lambda *_, **__: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(
        placement,
        "RAY",
        SimpleNamespace(available_resources=lambda: free, cluster_resources=lambda: {"CPU": 100.0}),
    )
    # Learner, evaluator and two shards beside them.
    config = maze_config(tmp_path, actors=None, mode="ray", address="10.0.0.1:6379", replay={"shards": 2})
    assert placement.fitting_actors(config) == actors


@pytest.mark.parametrize(
    ("device", "all_gpus", "free_gpus", "given", "said"),
    [
        ("auto", 4.0, 1.0, 1, 0),
        ("auto", 4.0, 0.5, 0, 1),
        ("auto", 0.0, 0.0, 0, 0),
        ("cuda", 4.0, 0.0, 1, 0),  # asked for, so it is waited for
        ("cpu", 4.0, 4.0, 0, 0),
    ],
)
def test_a_learner_that_may_choose_takes_a_free_gpu_and_otherwise_says_that_it_trains_on_the_cpu(
    device: str,
    all_gpus: float,
    free_gpus: float,
    given: int,
    said: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = SimpleNamespace(
        cluster_resources=lambda: {"GPU": all_gpus}, available_resources=lambda: {"GPU": free_gpus}
    )
    monkeypatch.setattr(placement, "RAY", cluster)
    lines: list[str] = []
    config = maze_config(tmp_path, mode="ray", learner={"device": device})
    assert placement.learner_gpus(config, lines.append, patience_s=0.0) == given
    assert len(lines) == said
    if said:
        assert "none of the cluster's 4 GPUs is free: the learner trains on the CPU" in lines[0]
        assert "--learner.device cuda" in lines[0]


@pytest.mark.parametrize("address", [None, "10.0.0.1:6379"])
def test_a_gpu_by_number_is_refused_where_ray_gives_out_gpus_with_what_to_do(
    address: str | None, tmp_path: Path
) -> None:
    config = maze_config(tmp_path, mode="ray", address=address, learner={"device": "cuda:1"})
    with pytest.raises(
        ConfigError,
        match=r"learner.device is 'cuda:1', but in Ray mode .* CUDA_VISIBLE_DEVICES=1 and --learner.device cuda",
    ):
        RaySession(config)


@pytest.mark.parametrize("waits", [0, 1, 2])
def test_an_interrupted_search_for_room_gives_back_what_it_asked_for(
    waits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    removed: list[object] = []

    class Group:
        def wait(self, seconds: float) -> bool:
            nonlocal waits
            waits -= 1
            if waits < 0:
                raise KeyboardInterrupt
            return False

    def ask(*_: object, **__: object) -> PlacementGroup:
        asked.append(Group())
        return asked[-1]  # type: ignore[return-value]

    monkeypatch.setattr(placement, "placement_group", ask)
    monkeypatch.setattr(placement, "remove_placement_group", removed.append)
    monkeypatch.setattr(placement, "_head_cpus", lambda: 100.0)
    monkeypatch.setattr(placement, "_described", lambda: "2 CPUs")
    with pytest.raises(KeyboardInterrupt):
        placement.Placement(maze_config(tmp_path, learner={"device": "cpu"}), say=lambda line: None)
    assert removed == asked


@pytest.mark.parametrize(
    ("device", "bundles"), [("cpu", [{"CPU": 1.0}] * 5), ("cuda", [{"CPU": 1.0, "GPU": 1.0}] + [{"CPU": 1.0}] * 4)]
)
def test_learner_each_shard_and_the_evaluator_have_a_place_of_their_own(
    device: str, bundles: list[dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[dict[str, float]]] = []

    def ask(wanted: list[dict[str, float]], **_: object) -> SimpleNamespace:
        asked.append(wanted)
        return SimpleNamespace(wait=lambda seconds: True)

    monkeypatch.setattr(placement, "placement_group", ask)
    monkeypatch.setattr(placement, "_head_cpus", lambda: 0.0)
    config = maze_config(tmp_path, mode="ray", actors=3, learner={"device": device}, replay={"shards": 3})
    where = placement.Placement(config, say=lambda line: None)
    assert asked == [bundles]
    indices = [
        options["scheduling_strategy"].placement_group_bundle_index
        for options in (where.learner(), *(where.other(index) for index in range(4)))
    ]
    assert indices == [0, 1, 2, 3, 4]
