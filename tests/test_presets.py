from __future__ import annotations

from dataclasses import asdict

import pytest

from drqn_dist.config import TrainConfig, differences, from_dict, setting
from drqn_dist.errors import ConfigError
from drqn_dist.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_every_number_that_a_preset_changes_names_its_source(name: str) -> None:
    changed = set(differences(TrainConfig(), PRESETS[name].config)) - {"preset"}
    assert changed <= set(PRESETS[name].sources)


@pytest.mark.parametrize("name", PRESETS)
def test_every_source_is_of_a_real_setting(name: str) -> None:
    for field, source in PRESETS[name].sources.items():
        setting(PRESETS[name].config, field)
        assert source


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_the_way_through_json(name: str) -> None:
    assert from_dict(TrainConfig, asdict(preset(name))) == preset(name)
    assert preset(name).preset == name


def test_the_named_presets_exist() -> None:
    assert set(PRESETS) == {"article", "drqn", "r2d2", "r2d2-small", "pong-cpu", "pong-gpu", "gridworld", "dqn"}


def test_an_unknown_preset_is_answered_with_close_ones() -> None:
    with pytest.raises(ConfigError, match=r"'pong_cpu'; did you mean pong-cpu or"):
        preset("pong_cpu")


def test_r2d2_keeps_the_papers_256_environments_and_names_two_implementations_for_each_of_its_numbers() -> None:
    r2d2 = PRESETS["r2d2"]
    assert r2d2.config.total_envs == 256
    assert r2d2.config.actor.epsilon_low == pytest.approx(0.4**8)
    implementations = ("Acme", "SEED", "rlpyt", "zoo")
    for field in ("learner.burn_in_steps", "learner.unroll_steps", "learner.gamma", "learner.n_step"):
        assert sum(name in r2d2.sources[field] for name in implementations) >= 2


def test_the_article_trains_one_batch_for_each_environment_step() -> None:
    article = preset("article")
    assert article.replay.samples_per_insert == article.learner.batch_windows * article.learner.unroll_steps
    assert article.total_envs == 1


def test_r2d2_small_has_every_part_of_r2d2_but_its_core_and_its_windows_are_cut_alike() -> None:
    large, small = preset("r2d2"), preset("r2d2-small")
    for field in (
        "network.head",
        "network.last_action_and_reward",
        "learner.n_step",
        "learner.stored_state",
        "learner.double_q",
        "learner.rescale_values",
        "learner.clip_rewards",
        "learner.loss",
        "learner.loss_over_time",
        "learner.optimizer",
        "learner.optimizer_epsilon",
        "learner.clip_gradient",
        "learner.clip_gradient_at",
        "replay.prioritized",
        "replay.priority_exponent",
        "replay.priority_eta",
        "replay.importance_exponent",
        "replay.initial_priority",
    ):
        assert setting(small, field) == setting(large, field), field
    assert (small.network.core, small.network.core_norm) == ("gru", True), "that of results/studies/masked-cartpole"
    for measure in ("burn_in", "unroll", "stride"):
        assert 4 * getattr(small.window, measure) == getattr(large.window, measure)
