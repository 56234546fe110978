"""What may change when a run goes on. Each setting stands in one of the two lists, so a new one must be decided."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from drqn_dist.config import TrainConfig, setting, with_settings
from drqn_dist.errors import ConfigError
from drqn_dist.resumable import changes, describe_changes, is_fixed, resumed_config
from tests.tiny import tiny_config

MAY_CHANGE = {
    "": "mode actors total_steps minutes stop_at_return address log_period_s checkpoint_period_s checkpoints_kept",
    "network": "precision",
    "learner": "batch_windows double_q learning_rate learning_rate_halving_updates optimizer_epsilon rmsprop_alpha "
    "clip_gradient clip_gradient_at target_period_updates publish_period_updates batches_per_draw probe_period_updates "
    "frame_store frame_store_bytes device torch_threads",
    "replay": "capacity_steps capacity_bytes min_steps samples_per_insert rate_tolerance_steps prioritized "
    "priority_exponent priority_eta initial_priority importance_exponent shards max_fragment_bytes journal "
    "journal_sync_s",
    "actor": "envs_per_actor env_threads torch_threads epsilon_low epsilon_high epsilon_decay epsilon_decay_steps "
    "push_period_steps max_pushes_in_flight weight_pull_period_steps",
    "eval": "period_updates episodes settled_evaluations settled_training_return final_episodes envs max_steps epsilon",
}
STAYS = {
    "": "preset seed run_dir",
    "env": "id frame_skip stack_frames height_px width_px sticky_action_probability noop_max_steps full_action_set "
    "life_loss_ends_episode max_episode_frames flicker_probability kwargs wrappers",
    "network": "torso torso_units core core_units core_norm head head_units last_action_and_reward center_pixels "
    "standardize_vectors",
    "learner": "unroll_steps burn_in_steps stored_state n_step gamma rescale_values reward_scale clip_rewards loss "
    "loss_over_time optimizer",
    "replay": "window_stride_steps",
    "actor": "fragment_steps",
}


def _names(listed: dict[str, str]) -> list[str]:
    return [f"{section}.{name}".lstrip(".") for section, names in listed.items() for name in names.split()]


def _all_names() -> list[str]:
    found = []
    for field in dataclasses.fields(TrainConfig):
        value = getattr(TrainConfig(), field.name)
        nested = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
        found += [f"{field.name}.{inner.name}" for inner in nested] or [field.name]
    return found


def test_it_is_decided_for_every_setting_whether_a_resumed_run_may_change_it() -> None:
    assert sorted(_names(MAY_CHANGE) + _names(STAYS)) == sorted(_all_names())
    assert [name for name in _all_names() if is_fixed(name)] == [n for n in _all_names() if n in _names(STAYS)]


def _run(tmp_path: Path) -> tuple[TrainConfig, Path]:
    return tiny_config(run_dir=str(tmp_path)), tmp_path / "run"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("env.id", "ALE/Breakout-v5", "from ALE/Pong-v5 to ALE/Breakout-v5: its weights and its curve belong to that"),
        ("network.core_units", 9, "from 8 to 9: its weights belong to that network"),
        ("learner.n_step", 3, "from 1 to 3: fragments are cut and kept for such windows"),
        ("learner.optimizer", "rmsprop", "from adam to rmsprop: the optimizer's moments were made with it"),
        ("learner.clip_rewards", False, "from True to False: its weights hold values on that scale"),
    ],
)
def test_a_refusal_names_the_setting_both_values_the_reason_and_what_to_do(
    name: str, value: Any, words: str, tmp_path: Path
) -> None:
    saved, run = _run(tmp_path)
    with pytest.raises(ConfigError) as refused:
        resumed_config(saved, with_settings(saved, {name: value}), run)
    message = str(refused.value)
    assert message.startswith(f"--resume cannot change {name} {words}")
    assert f"start a new run from its weights with --init-from {run}" in message
    assert ("where their shapes are the same" in message) == name.startswith("network.")


def test_all_settings_that_must_stay_are_named_at_once(tmp_path: Path) -> None:
    saved, run = _run(tmp_path)
    asked = with_settings(saved, {"learner.gamma": 0.5, "learner.n_step": 2, "network.core": "none", "minutes": 3.0})
    with pytest.raises(
        ConfigError, match=r"cannot change network\.core .*; nor can it change learner\.n_step, learner\.gamma$"
    ):
        resumed_config(saved, asked, run)


def test_a_preset_is_refused_with_what_to_do_instead(tmp_path: Path) -> None:
    saved, run = _run(tmp_path)
    with pytest.raises(ConfigError, match=r"preset from drqn to dqn: .*name each setting instead"):
        resumed_config(saved, dataclasses.replace(saved, preset="dqn"), run)


def test_the_configuration_follows_a_folder_that_was_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, run = _run(tmp_path / "old")
    run.mkdir(parents=True)
    assert resumed_config(saved, saved, run) == saved
    (tmp_path / "new").mkdir()
    moved = run.rename(tmp_path / "new" / "run")
    assert resumed_config(saved, saved, moved).run_dir == str(tmp_path / "new")
    # From inside the folder its name is a dot, whose parent is a dot too.
    monkeypatch.chdir(moved)
    assert resumed_config(saved, saved, Path(".")).run_dir == str(tmp_path / "new")
    # A place that is written otherwise, but is the same, stays as it was written.
    monkeypatch.chdir(tmp_path)
    relative = dataclasses.replace(saved, run_dir=f".{os.sep}new")
    assert resumed_config(relative, relative, moved).run_dir == relative.run_dir


def test_run_dir_cannot_send_a_run_elsewhere_but_may_name_where_it_lies(tmp_path: Path) -> None:
    saved, run = _run(tmp_path / "old")
    elsewhere = dataclasses.replace(saved, run_dir=str(tmp_path / "elsewhere"))
    with pytest.raises(ConfigError, match=r"cannot change run_dir .*move that folder"):
        resumed_config(saved, elsewhere, run)
    assert resumed_config(saved, elsewhere, tmp_path / "elsewhere" / "run").run_dir == elsewhere.run_dir


def test_every_change_is_described_in_a_line() -> None:
    old = tiny_config(learner={"learning_rate": 1e-3}, actors=1)
    new = with_settings(old, {"learner.learning_rate": 5e-4, "actors": 3, "minutes": 30.0})
    assert changes(old, new) == {"actors": (1, 3), "minutes": (None, 30.0), "learner.learning_rate": (1e-3, 5e-4)}
    assert describe_changes(old, new, 100) == [
        "actors: 3, was 1",
        "minutes: 30.0, was None",
        "learner.learning_rate: 0.0005, was 0.001",
    ]


def test_a_step_size_that_halves_is_told_as_it_will_be() -> None:
    old = tiny_config(learner={"learning_rate": 1e-3, "learning_rate_halving_updates": 50})
    new = with_settings(old, {"learner.learning_rate": 5e-4})
    (_, effect) = describe_changes(old, new, 100)  # two halvings: 0.0005 / 4 and 0.001 / 4
    assert effect == "the step size at update 100 is 0.000125 by its halving, was 0.00025"
    (_, effect) = describe_changes(old, with_settings(old, {"learner.learning_rate_halving_updates": None}), 100)
    assert effect == "the step size at update 100 is 0.001 by its halving, was 0.00025"
    assert len(describe_changes(old, with_settings(old, {"actors": 2}), 100)) == 1


def test_settings_are_changed_by_name_and_checked() -> None:
    config = tiny_config(env={"kwargs": {"size": 4}})
    changed = with_settings(config, {"seed": 3, "replay.shards": 1, "env.kwargs": {"size": 5}})
    assert (changed.seed, setting(changed, "env.kwargs")) == (3, {"size": 5})
    assert config.env.kwargs == {"size": 4}
    with pytest.raises(ConfigError, match=r"learner\.gamma is 2"):
        with_settings(config, {"learner.gamma": 2})
