"""Values that may be left to the program, and how they are read. What the settings do is tested where they do it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from drqn_dist.arguments import parse_train
from drqn_dist.config import EnvConfig, TrainConfig, from_dict, setting
from drqn_dist.errors import ConfigError

LEFT_OPEN = {
    "actors": "auto",
    "minutes": "no bound",
    "learner.learning_rate_halving_updates": "it stays",
    "replay.rate_tolerance_steps": "automatic",
    "replay.window_stride_steps": "automatic",
    "actor.fragment_steps": "automatic",
    "actor.push_period_steps": "automatic",
    "eval.period_updates": "never",
    "eval.final_episodes": "as many as the others",
    "eval.envs": "automatic",
}


@pytest.mark.parametrize(("name", "meaning"), LEFT_OPEN.items())
def test_none_leaves_a_setting_open_and_0_is_refused_with_what_none_means(name: str, meaning: str) -> None:
    config = parse_train([f"--{name}=None"], "train").config
    assert setting(config, name) is None
    with pytest.raises(ConfigError, match=rf"{name} is 0(\.0)?, but must .* None \({meaning}\)"):
        parse_train([f"--{name}=0"], "train")


def test_derived_values_stand_where_none_is() -> None:
    config = TrainConfig()
    assert config.window.stride == config.learner.unroll_steps
    assert config.window.fragment == 40
    assert config.push_period == 20
    assert config.rate_tolerance_steps > 0
    assert config.learner.learning_rate_at(10**6) == config.learner.learning_rate
    open_ended = replace(config, actors=None)
    assert (open_ended.num_actors, open_ended.total_envs) == (1, config.actor.envs_per_actor)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"minutes": "ten"}, "minutes is 'ten', but must be of type float or None"),
        ({"stop_at_return": True}, "stop_at_return is True, but must be of type float or None"),
        ({"address": 3}, "address is 3, but must be of type str or None"),
        ({"eval": {"envs": 1.5}}, r"eval.envs is 1.5, but must be of type int or None"),
        ({"seed": None}, "seed is None, but must be of type int"),
        ({"env": {"wrappers": "a:B"}}, "env.wrappers is 'a:B', but must be a list"),
        ({"env": {"wrappers": ["a:B", None]}}, r"env.wrappers\[1\] is None, but must be of type str"),
        ({"env": {"kwargs": [1]}}, r"env.kwargs is \[1\], but must be a table"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_also_where_none_is_allowed(values: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(TrainConfig, values)  # type: ignore[arg-type]


def test_whole_numbers_are_read_where_none_or_a_fraction_is_allowed() -> None:
    config = from_dict(TrainConfig, {"minutes": 3, "stop_at_return": -5, "actors": None})
    assert (config.minutes, config.stop_at_return, config.actors) == (3.0, -5.0, None)
    assert isinstance(config.minutes, float)
    assert from_dict(TrainConfig, json.loads(json.dumps(asdict(config)))) == config


def _refusal(path: Path) -> str:
    try:
        from_dict(TrainConfig, json.loads(path.read_text())["config"])
    except ConfigError as error:
        return str(error)
    return ""


def test_no_configuration_among_the_results_is_refused_for_a_value() -> None:
    refusals = [_refusal(path) for path in Path(__file__).parent.parent.glob("results/**/config.json")]
    # Earlier versions had other settings.
    assert [refusal for refusal in refusals if refusal and not refusal.startswith("unknown setting")] == []


def test_wrappers_of_an_atari_game_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"env\.wrappers is \['m:W'\], but Atari"):
        EnvConfig(id="ALE/Pong-v5", wrappers=["m:W"])
