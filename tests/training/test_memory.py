from __future__ import annotations

import dataclasses
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drqn_dist import checkpoint
from drqn_dist.codec import encode
from drqn_dist.config import ReplayConfig, TrainConfig
from drqn_dist.envs.make import env_spec
from drqn_dist.errors import ConfigError
from drqn_dist.fragment import Fragment
from drqn_dist.interfaces import EnvSpec
from drqn_dist.presets import PRESETS, preset
from drqn_dist.training.memory import (
    _container_rooms,
    available_memory,
    check_disk,
    check_memory,
    checkpoint_bytes,
    estimate_memory,
    free_disk,
    journal_bytes,
    usable_cores,
)
from drqn_dist.training.serial import SerialSession
from learner.frame_store import plan_store, state_shape
from learner.train_state import TrainState
from replay_server.make import make_replay
from tests.runs import maze_config
from tests.tiny import IMAGE, tiny_config

PONG = EnvSpec(observation_shape=(1, 84, 84), observation_dtype="uint8", num_actions=6, frames_per_step=4)
GB = 1024**3


def test_the_replay_is_counted_as_if_compression_saved_nothing() -> None:
    config = dataclasses.replace(preset("article"))  # zero state, so a step is a frame, an action and a reward
    frames, fragments = 100_000 * (84 * 84 + 16), 100_000 // 32
    expected = frames + fragments * (84 * 84 + 2048)
    assert estimate_memory(config, PONG)["replay"] == expected


def test_capacity_bytes_bounds_the_replay() -> None:
    replay = ReplayConfig(capacity_steps=10_000_000, capacity_bytes=GB)
    config = dataclasses.replace(TrainConfig(), replay=replay)
    assert GB <= estimate_memory(config, PONG)["replay"] < 2 * GB


def test_what_fits_passes_and_one_byte_less_is_refused_with_the_numbers() -> None:
    config = preset("drqn")
    least = plan_store(config, PONG, cuda=False, device_free_bytes=0, host_free_bytes=0).bytes
    needed = sum(estimate_memory(config, PONG).values()) + least
    check_memory(config, PONG, available_bytes=needed)
    with pytest.raises(
        ConfigError, match=r"may need [\d,]+ MB .*replay [\d,]+.* are available; lower replay\.capacity"
    ):
        check_memory(config, PONG, available_bytes=needed - 1)


@pytest.mark.parametrize(
    ("section", "change", "advice"),
    [
        ("learner", {"batch_windows": 65_536}, "lower learner.batch_windows"),
        ("learner", {"unroll_steps": 20_000}, "the window"),
        ("network", {"core_units": 65_536}, "lower network"),
        ("actor", {"envs_per_actor": 65_536}, "lower actors"),
    ],
)
def test_huge_settings_are_refused_with_advice_on_the_one_to_lower(
    section: str, change: dict[str, int], advice: str
) -> None:
    base = preset("drqn")
    base = dataclasses.replace(base, replay=dataclasses.replace(base.replay, capacity_steps=3_000_000))
    config = dataclasses.replace(base, **{section: dataclasses.replace(getattr(base, section), **change)})
    with pytest.raises(ConfigError, match=advice):
        check_memory(config, PONG, available_bytes=16 * GB)


def test_a_frame_store_of_a_given_size_counts_in_full() -> None:
    config = preset("drqn")
    config = dataclasses.replace(config, learner=dataclasses.replace(config.learner, frame_store_bytes=3 * GB))
    store = plan_store(config, PONG, cuda=False, device_free_bytes=0, host_free_bytes=0).bytes
    assert store <= 3 * GB
    needed = sum(estimate_memory(config, PONG).values()) + store
    check_memory(config, PONG, available_bytes=needed)
    with pytest.raises(ConfigError, match=r"frame store [\d,]+\)"):
        check_memory(config, PONG, available_bytes=needed - 1)


def test_a_machine_with_little_memory_gets_a_frame_store_of_half_of_what_is_left() -> None:
    config = preset("pong-cpu")
    others = sum(estimate_memory(config, PONG).values())
    check_memory(config, PONG, available_bytes=others + GB // 2)
    part = plan_store(config, PONG, cuda=False, device_free_bytes=0, host_free_bytes=GB // 2)
    assert not part.complete
    assert GB / 5 < part.bytes <= GB / 4


def test_serial_mode_needs_less_than_many_processes() -> None:
    ray = dataclasses.replace(preset("pong-cpu"), actors=30)
    serial = dataclasses.replace(ray, mode="serial")
    check_memory(serial, PONG, available_bytes=6 * GB)
    with pytest.raises(ConfigError, match="--mode serial"):
        check_memory(ray, PONG, available_bytes=6 * GB)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_fits_an_ordinary_machine(name: str) -> None:
    config = preset(name)
    spec = dataclasses.replace(PONG, observation_shape=(1, config.env.height_px, config.env.width_px))
    check_memory(config, spec, available_bytes=(16 if name == "r2d2" else 8) * GB)


def test_a_container_limit_counts_and_its_page_cache_does_not(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert _container_rooms(tmp_path) == [1000 - 700 + 150]
    (tmp_path / "memory.max").write_text("max\n")
    assert _container_rooms(tmp_path) == []


def test_this_machine_has_some_memory() -> None:
    assert available_memory() > 0


@pytest.mark.parametrize(("quota", "cores"), [("150000 100000", 1), ("50000 100000", 1), ("max 100000", 10**6)])
def test_a_containers_quota_bounds_the_cores(quota: str, cores: int, tmp_path: Path) -> None:
    everything = usable_cores(tmp_path)
    assert everything >= 1
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert usable_cores(tmp_path) == min(cores, everything)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize("torso", ["mlp", "small"])
def test_a_checkpoint_is_no_larger_than_its_bound_and_hardly_smaller(
    optimizer: str, torso: str, tmp_path: Path
) -> None:
    network = {"torso": torso, "torso_units": 64, "core_units": 64, "head": "dueling", "head_units": 8}
    config = tiny_config(network=network, learner={"optimizer": optimizer})
    tensors = TrainState(config, IMAGE, torch.device("cpu")).to_tensors()
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, tensors, {"replay": [make_replay(config).get_state()], "agent_steps": 10**12})
    bound = checkpoint_bytes(config, IMAGE)
    assert path.stat().st_size <= bound < 1.1 * path.stat().st_size + 16_384


def test_a_serial_runs_checkpoint_is_no_larger_than_its_bound(tmp_path: Path) -> None:
    config = maze_config(tmp_path, mode="serial")
    with closing(SerialSession(config, None, tmp_path)) as session:
        session.advance(0.5)
        saved = session.save()
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, saved.tensors, saved.meta)
    assert path.stat().st_size <= checkpoint_bytes(config, env_spec(config.env))
    without = checkpoint_bytes(replace(config, mode="ray"), env_spec(config.env))
    assert path.stat().st_size > without, "so that it says something"


def _noise_of_single_steps(config: TrainConfig, spec: EnvSpec) -> int:
    """The largest of a hundred encoded episodes of one step whose pixels do not compress."""
    rng = np.random.default_rng(0)
    fragments = [
        Fragment(
            observations=rng.integers(0, 256, (2, *spec.observation_shape), np.uint8),
            actions=np.array([2**31]),
            rewards=np.ones(1, np.float32),
            terminated=True,
            truncated=False,
            first_step=0,
            actor_id=99_999,
            env_id=65_535,
            episode_id=2**40,
            sequence_no=2**40,
            weight_version=2**40,
            priorities=np.ones(1, np.float32),
            states={0: rng.random(state_shape(config, spec), np.float32)},
        )
        for _ in range(100)
    ]
    return max(len(encode(fragment)) for fragment in fragments)


@pytest.mark.parametrize("core", ["gru", "lstm"])
def test_the_journals_bound_holds_for_frames_that_do_not_compress_in_the_shortest_episodes(core: str) -> None:
    config = tiny_config(network={"core": core, "core_units": 32}, replay={"capacity_steps": 1_000})
    step = _noise_of_single_steps(config, PONG)
    priorities = 16 * (1_000 // config.window.stride + 1_000 // 16)
    # A replay of a thousand steps is smaller than two of the smallest segments: twice its contents.
    contents = (journal_bytes(config, PONG) - 1024**2 - priorities) / (17 / 16 + 1)
    assert 1_000 * step <= contents < 1.02 * 1_000 * step


def test_the_journal_is_bounded_by_capacity_bytes_where_these_are_less_or_nothing_else_is_known() -> None:
    config = tiny_config(replay={"capacity_steps": 10**9, "capacity_bytes": 16 * GB})
    kept = 17 * GB + 1024**2 + 16 * (10**9 // config.window.stride + 10**9 // 16)
    assert journal_bytes(config) == kept + 128 * config.replay.max_fragment_bytes
    assert kept < journal_bytes(config, PONG) < kept + GB
    assert journal_bytes(dataclasses.replace(config, replay=dataclasses.replace(config.replay, journal=False))) == 0


def test_a_run_that_fits_on_the_disk_passes_and_one_byte_less_is_refused_with_the_numbers(tmp_path: Path) -> None:
    config = dataclasses.replace(preset("drqn"), run_dir=str(tmp_path), checkpoints_kept=2)
    needed = 3 * checkpoint_bytes(config, PONG) + journal_bytes(config, PONG)  # one more while the newest is written
    assert check_disk(config, PONG, free_bytes=needed).total == needed
    with pytest.raises(
        ConfigError,
        match=r"need [\d,]+ MB on disk \(checkpoints [\d,]+, replay's journal [\d,]+\), but [\d,]+ MB are free at .*; "
        r"lower replay\.capacity_bytes or replay\.capacity_steps, free some, or choose another place with --run-dir",
    ):
        check_disk(config, PONG, free_bytes=needed - 1)
    many = dataclasses.replace(config, checkpoints_kept=10_000)
    with pytest.raises(ConfigError, match="lower checkpoints_kept"):
        check_disk(many, PONG, free_bytes=needed)


def test_what_a_run_that_goes_on_holds_already_counts_as_free_but_its_metrics_do_not(tmp_path: Path) -> None:
    config = tiny_config(run_dir=str(tmp_path))
    needed = check_disk(config, PONG, free_bytes=2**60).total
    for name, size in {"checkpoints/a": 300, "journal/0/b": 40, "tensorboard/c": 5_000, "metrics.jsonl": 7_000}.items():
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    check_disk(config, PONG, tmp_path / "run", free_bytes=needed - 340)
    with pytest.raises(ConfigError, match="or move the run's folder to a larger disk"):
        check_disk(config, PONG, tmp_path / "run", free_bytes=needed - 341)


def test_free_room_is_that_of_the_disk_on_which_a_folder_will_lie(tmp_path: Path) -> None:
    there = free_disk(tmp_path)
    assert there is not None
    assert there > 0
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "not" / "yet", tmp_path / "file" / "runs"):
        found = free_disk(place)
        assert found is not None
        assert abs(found - there) < GB
    assert free_disk(Path("/proc/runs")) is None, "a file system without a size tells nothing"
    unknown = dataclasses.replace(tiny_config(), run_dir="/proc/runs")
    assert check_disk(unknown, PONG).available is None


@pytest.mark.parametrize("name", PRESETS)
def test_every_presets_checkpoints_and_journal_fit_on_an_ordinary_disk(name: str) -> None:
    config = preset(name)
    spec = dataclasses.replace(PONG, observation_shape=(1, config.env.height_px, config.env.width_px))
    check_disk(config, spec, free_bytes=8 * GB)


def store_config(**learner: Any) -> TrainConfig:
    """Fragments of 8 steps, hence 9 observations of 36 · 36 + 12 bytes and two states of 8 units: 9 · 1,308 + 2 · 32 =
    11,836 bytes each. A window reads 4 + 4 + 2 - 1 = 9 steps, hence up to 2 fragments."""
    return tiny_config(
        mode="serial",
        network={"core": "gru"},
        learner={"burn_in_steps": 4, "n_step": 2, "stored_state": True} | learner,
        replay={"capacity_steps": 80_000, "samples_per_insert": 1.0},
    )


FRAGMENT = 11_900
FRESH = 2_876
"""32 MiB of 9 · 1,296 bytes."""
ALL = 10_500 + FRESH + 2
"""105 % of 80,000 / 8 fragments, and room for an answer."""
STORE = (ALL + 8) * FRAGMENT
"""With a place for 4 windows · 2 fragments that come along: 158,436,696 bytes."""


def test_the_frame_store_lies_on_the_gpu_if_all_of_it_fits_into_seven_tenths_of_what_is_free() -> None:
    plan = plan_store(store_config(), IMAGE, cuda=True, device_free_bytes=227_562_001, host_free_bytes=10**12)
    assert (plan.place, plan.complete, plan.fresh_limit, plan.bytes) == ("device", True, FRESH, STORE)
    assert plan.capacity == (ALL * 9, ALL * 2 * 2, 4 * ALL, 8)  # rows, states twice over, entries, extra


def test_otherwise_it_lies_in_host_memory_if_all_of_it_fits_into_half_of_that() -> None:
    plan = plan_store(store_config(), IMAGE, cuda=True, device_free_bytes=227_561_999, host_free_bytes=2 * STORE)
    assert (plan.place, plan.complete, plan.bytes) == ("host", True, STORE)


def test_otherwise_the_newest_part_lies_where_most_of_it_fits() -> None:
    short = 2 * STORE - 1
    plan = plan_store(store_config(), IMAGE, cuda=True, device_free_bytes=10**8, host_free_bytes=short)
    assert (plan.place, plan.complete) == ("host", False)
    assert plan.capacity == ((ALL - 1) * 9, (ALL - 1) * 2 * 2, 4 * (ALL - 1), 8)
    assert plan.bytes == STORE - FRAGMENT
    plan = plan_store(store_config(), IMAGE, cuda=True, device_free_bytes=227_561_999, host_free_bytes=10**8)
    assert (plan.place, plan.complete, plan.bytes) == ("device", False, STORE - FRAGMENT)


def test_it_never_holds_less_than_two_answers() -> None:
    plan = plan_store(store_config(), IMAGE, cuda=True, device_free_bytes=0, host_free_bytes=0)
    assert plan.bytes == (2 * (FRESH + 2) + 8) * FRAGMENT
    assert not plan.complete


def test_without_a_gpu_the_device_is_the_host() -> None:
    plan = plan_store(store_config(), IMAGE, cuda=False, device_free_bytes=0, host_free_bytes=2 * STORE)
    assert (plan.place, plan.complete) == ("device", True)
    asked = store_config(frame_store="host")
    plan = plan_store(asked, IMAGE, cuda=False, device_free_bytes=0, host_free_bytes=2 * STORE)
    assert (plan.place, plan.complete) == ("host", True)


@pytest.mark.parametrize(("place", "bytes_there"), [("device", STORE - FRAGMENT), ("host", STORE)])
def test_a_place_that_is_asked_for_is_taken_with_the_room_that_it_has(place: str, bytes_there: int) -> None:
    plan = plan_store(
        store_config(frame_store=place), IMAGE, cuda=True, device_free_bytes=227_561_999, host_free_bytes=2 * STORE
    )
    assert (plan.place, plan.bytes) == (place, bytes_there)


def test_the_bytes_asked_for_count_more_than_what_is_free() -> None:
    config = store_config(frame_store_bytes=STORE)
    plan = plan_store(config, IMAGE, cuda=True, device_free_bytes=0, host_free_bytes=0)
    assert (plan.place, plan.complete) == ("device", True)
    config = store_config(frame_store_bytes=STORE - 1)
    plan = plan_store(config, IMAGE, cuda=True, device_free_bytes=10**12, host_free_bytes=10**12)
    assert (plan.complete, plan.bytes) == (False, STORE - FRAGMENT)


def test_each_shard_has_a_part_of_its_own() -> None:
    config = dataclasses.replace(store_config(batches_per_draw=2), mode="ray", actors=2)
    config = dataclasses.replace(config, replay=dataclasses.replace(config.replay, shards=2))
    plan = plan_store(config, IMAGE, cuda=False, device_free_bytes=0, host_free_bytes=10**12)
    each, extra = 5_250 + FRESH + 2, 2 * 2 * 4 * 2  # batches of a draw: 2 for each of 2 shards
    assert plan.capacity == (each * 9, each * 2 * 2, 4 * each, extra)
    assert plan.bytes == (2 * each + extra) * FRAGMENT


def test_an_answer_brings_at_least_twice_what_arrives_between_two_draws_and_never_more_than_there_is() -> None:
    # 4 windows · 4 steps at 0.001 samples per insert: 16,000 inserted steps, 2,000 fragments.
    config = store_config()
    rare = dataclasses.replace(config, replay=dataclasses.replace(config.replay, samples_per_insert=0.001))
    assert plan_store(rare, IMAGE, False, 0, 10**12).fresh_limit == 2 * 2_000
    small = dataclasses.replace(config, replay=dataclasses.replace(config.replay, capacity_steps=8_001))
    assert plan_store(small, IMAGE, False, 0, 10**12).fresh_limit == 1_001


def test_a_plan_says_in_words_where_the_store_lies() -> None:
    plan = plan_store(store_config(), IMAGE, cuda=True, device_free_bytes=10**12, host_free_bytes=0)
    assert str(plan) == (
        "frame store on the learner's device: up to 159 MB of decoded frames, room for all that the replay holds"
    )
