from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from drqn_dist.config import ReplayConfig, TrainConfig
from drqn_dist.errors import ConfigError
from drqn_dist.interfaces import EnvSpec
from drqn_dist.presets import PRESETS, preset
from drqn_dist.training.memory import _container_rooms, available_memory, check_memory, estimate_memory, usable_cores

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
    needed = sum(estimate_memory(config, PONG).values())
    check_memory(config, PONG, available_bytes=needed)
    with pytest.raises(
        ConfigError, match=r"may need [\d,]+ MB .*replay [\d,]+.* are available; lower replay\.capacity"
    ):
        check_memory(config, PONG, available_bytes=needed - 1)


@pytest.mark.parametrize(
    ("section", "change", "advice"),
    [
        ("learner", {"prefetch_batches": 64, "batch_windows": 65_536}, "lower learner.batch_windows"),
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


def test_an_older_container_limit_counts_too(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("1000\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("900\n")
    (tmp_path / "memory" / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 50\n")
    assert _container_rooms(tmp_path) == [1000 - 900 + 50]


def test_this_machine_has_some_memory() -> None:
    assert available_memory() > 0


@pytest.mark.parametrize(("quota", "cores"), [("150000 100000", 1), ("50000 100000", 1), ("max 100000", 10**6)])
def test_a_containers_quota_bounds_the_cores(quota: str, cores: int, tmp_path: Path) -> None:
    everything = usable_cores(tmp_path)
    assert everything >= 1
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert usable_cores(tmp_path) == min(cores, everything)
