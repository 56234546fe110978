from __future__ import annotations

from pathlib import Path

import pytest

from drqn_dist.errors import ConfigError
from drqn_dist.presets import preset
from drqn_dist.studies.study import load_study

FILE = """
title = "Which memory?"
seeds = [0, 1]
episodes = 7

[settings]
preset = "gridworld"
total_steps = 9_000
stop_at_return = "None"
env.kwargs.maze = "cheese"

[axes.size]
small = { env.kwargs.size = 3 }
"large & slow" = { env.kwargs.size = 5, minutes = 9.0 }

[axes.memory]
GRU = { network.core = "gru" }
none = { network.core = "none", seeds = [4] }

[axes.batch]
B32 = {}
B8 = { learner.batch_windows = 8 }

[references.small]
"by hand" = 0.5
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "which.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_grid_is_every_combination_of_its_axes_and_seeds(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, FILE))
    assert (study.name, study.title, study.cells[0].episodes) == ("which", "Which memory?", 7)
    assert study.panels == ["small", "large & slow"]
    assert study.arms == ["GRU, B32", "GRU, B8", "none, B32", "none, B8"]
    assert [cell.name for cell in study.cells if cell.panel == "large & slow"] == [
        "large-slow__gru-b32__0",
        "large-slow__gru-b32__1",
        "large-slow__gru-b8__0",
        "large-slow__gru-b8__1",
        "large-slow__none-b32__4",
        "large-slow__none-b8__4",
    ]
    assert study.references == {"small": {"by hand": 0.5}}


def test_settings_of_the_axes_come_over_those_of_the_study_and_these_over_the_presets(tmp_path: Path) -> None:
    cells = {cell.name: cell.config for cell in load_study(write(tmp_path, FILE)).cells}
    config = cells["large-slow__none-b8__4"]
    assert (config.network.core, config.learner.batch_windows, config.seed) == ("none", 8, 4)
    assert (config.total_steps, config.minutes, config.stop_at_return) == (9_000, 9.0, None)
    assert config.env.kwargs == {"maze": "cheese", "size": 5}
    assert config.learner.unroll_steps == preset("gridworld").learner.unroll_steps
    assert cells["small__gru-b32__1"].env.kwargs == {"maze": "cheese", "size": 3}
    assert cells["small__gru-b32__1"].minutes == preset("gridworld").minutes


def test_elsewhere_is_each_runs_own_environment_under_other_settings(tmp_path: Path) -> None:
    other = "[elsewhere.flickering]\nenv = { flicker_probability = 0.9, kwargs.size = 7 }\n[axes.size]"
    cells = {cell.name: cell for cell in load_study(write(tmp_path, FILE.replace("[axes.size]", other))).cells}
    env = cells["large-slow__none-b8__4"].elsewhere["flickering"]
    assert (env.id, env.flicker_probability, env.kwargs) == (
        "drqn_dist/GridWorld-v0",
        0.9,
        {"maze": "cheese", "size": 7},
    )
    with pytest.raises(ConfigError, match=r"elsewhere\.flickering sets env, learner, but only env"):
        load_study(write(tmp_path, FILE.replace("[axes.size]", other.replace("env =", "learner = {}\nenv ="))))


def test_one_axis_makes_no_panels(tmp_path: Path) -> None:
    text = '[axes.memory]\nGRU = {preset = "dqn"}\nnone = {preset = "drqn"}\n[references]\nbest = 500'
    study = load_study(write(tmp_path, text))
    assert study.references == {"": {"best": 500.0}}
    assert (study.panels, study.arms) == ([""], ["GRU", "none"])
    assert [cell.name for cell in study.cells] == ["gru__0", "none__0"]
    assert study.cells[0].config == preset("dqn")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "', 'titel = "', r"which\.toml: unknown key 'titel'"),
        ("total_steps", "totalsteps", r"unknown setting totalsteps"),
        ('core = "gru"', 'core = "gruu"', r"network\.core is 'gruu'"),
        ("batch_windows = 8", "batch_windows = 0", r"learner\.batch_windows is 0"),
        ('preset = "gridworld"', 'preset = "maze"', r"unknown preset 'maze'"),
        ("seeds = [0, 1]", "seeds = 3", r"seeds is 3, but must be a list"),
        ("episodes = 7", "episodes = 0", r"episodes is 0"),
        ('"large & slow"', '"Small"', r"two runs would both be called small__gru-b32__0"),
        ("references.small", "references.smal", r"references\.smal: the first axis has no such value"),
        ("B32 = {}", "B32 = 32", r"B32 is 32, but must be a table"),
        ("[settings]", "[settings", r"no TOML file"),
        ('"by hand" = 0.5', '"by hand" = "half"', r"references: small: by hand is 'half', but must be a number"),
        ("total_steps", "seed = 3\ntotal_steps", r"seed is 3; say seeds = \[3\]"),
        ('preset = "gridworld"', "", r"small, GRU, B32 has no preset"),
        ("episodes = 7", "episodes = 7\nlevels = 0.5", r"levels is 0\.5, but must be a list"),
        ("episodes = 7", "episodes = 7\nlevels = [nan]", r"levels is \[nan\], but must be a list of numbers"),
    ],
)
def test_a_mistake_is_named_with_its_file(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_study(write(tmp_path, FILE.replace(old, new, 1)))


def test_a_study_without_axes_or_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no \[axes"):
        load_study(write(tmp_path, "seeds = [0]"))
    with pytest.raises(ConfigError, match="cannot read the study"):
        load_study(tmp_path / "none.toml")


@pytest.mark.parametrize("file", sorted(Path(__file__).parents[2].glob("studies/*.toml")), ids=lambda path: path.stem)
def test_every_study_that_is_shipped_can_be_read(file: Path) -> None:
    assert len(load_study(file).cells) > 1
