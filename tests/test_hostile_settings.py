"""Whatever settings say, in config.json, a study's file or arguments, is data: used, or refused with a clear word."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drqn_dist.arguments import parse_train
from drqn_dist.config import setting
from drqn_dist.errors import ConfigError, RunFolderError
from drqn_dist.experiments.run_folder import open_run
from drqn_dist.presets import preset
from drqn_dist.resumable import resumed_config
from drqn_dist.scaling.settings import counts
from drqn_dist.studies.study import load_study
from tests.hostile import DEEP, FUZZ, JSON, changed, little_allocated, little_memory, paths, refused_with


def description(**config: Any) -> dict[str, Any]:
    """A config.json with these settings, and two starts that changed something."""
    there = {"config": asdict(preset("gridworld")) | config, "versions": {"python": "3.11.2"}, "machine": {"cpu": "x"}}
    history = [
        {"updates": 1, "agent_steps": 2, "changes": {"minutes": {"old": 3.0, "new": None}}},
        {"updates": 4, "agent_steps": 5, "changes": {"learner.gamma": {"old": 0.5, "new": 0.99}}},
    ]
    return json.loads(json.dumps(there | {"history": history}))  # type: ignore[no-any-return]


def use_run(folder: Path) -> None:
    """All that is done with a config.json, and that what came of it can be written down again."""
    run = open_run(folder)
    json.dumps(asdict(run.config))
    json.dumps(run.read_description(), indent=2)
    with suppress(RunFolderError):  # a history that is not used otherwise
        json.dumps(asdict(run.first_config()))
    with suppress(RunFolderError):
        assert all(isinstance(steps, int) for steps in run.resumed_at())
    resumed_config(run.config, run.config, folder)
    run.go_on(replace(run.config, checkpoints_kept=7), 1, 2, [])


NESTED = json.dumps(description()).replace('"kwargs": {', '"kwargs": {"x": %s, ')
ABSURD_CONFIGS = {
    "lists in lists": b"[" * DEEP,
    "tables in tables": b'{"a":' * DEEP,
    "settings that are nested": (NESTED % ("[" * DEEP + "]" * DEEP)).encode(),
    "settings that are nested a little": (NESTED % ("[" * 500 + "]" * 500)).encode(),
    "a number of 5000 digits": json.dumps(description()).replace('"seed": 0', '"seed": ' + "9" * 5_000).encode(),
    "a fraction of 4000 digits": json.dumps(description(minutes=0))
    .replace('"minutes": 0', '"minutes": ' + "9" * 4_000)
    .encode(),
    "NaN": json.dumps(description(minutes=float("nan"))).encode(),
    "infinite": json.dumps(description(eval={"settled_training_return": float("inf")})).encode(),
    "NUL in a path": json.dumps(description(run_dir="a\0b")).encode(),
    "half a character in a path": json.dumps(description(run_dir="\ud800")).encode(),
    "wrappers that are a number": json.dumps(description(env={"id": "x", "wrappers": 3})).encode(),
    "wrappers that are numbers": json.dumps(description(env={"id": "x", "wrappers": [3]})).encode(),
    "arguments that are a list": json.dumps(description(env={"id": "x", "kwargs": []})).encode(),
    "an argument of 100 digits": json.dumps(description(env={"id": "x", "kwargs": {"a": 10**100}})).encode(),
    "no settings": b'{"config": null, "versions": {}, "machine": {}}',
    "a list": b"[]",
    "a text": b'"config"',
    "versions that are numbers": json.dumps(description() | {"versions": {"torch": 1}}).encode(),
    "no text": b"\xff\xfe\x00",
    "zeros": bytes(5_000),
    "nothing": b"",
    "too large": b" " * (5 * 1024**2),
}


@pytest.mark.parametrize("what", ABSURD_CONFIGS)
def test_an_absurd_configuration_is_refused_and_takes_no_memory(tmp_path: Path, what: str) -> None:
    (tmp_path / "config.json").write_bytes(ABSURD_CONFIGS[what])
    with little_allocated(), pytest.raises(RunFolderError, match=re.escape(str(tmp_path))) as refused:
        open_run(tmp_path)
    assert len(str(refused.value)) < 1_000


def test_a_configuration_that_has_no_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with little_allocated(), pytest.raises(RunFolderError, match="it has more than 4,194,304 bytes"):
        open_run(tmp_path)


@FUZZ
@given(raw=st.binary(max_size=200), at=st.integers(0, 4_000), length=st.integers(0, 40))
def test_a_configuration_with_other_bytes_in_it_is_read_or_refused(
    tmp_path: Path, raw: bytes, at: int, length: int
) -> None:
    whole = json.dumps(description()).encode()
    (tmp_path / "config.json").write_bytes(whole[:at] + raw[:40] + whole[at + length :])
    with refused_with(RunFolderError, str(tmp_path)):
        open_run(tmp_path)
    (tmp_path / "config.json").write_bytes(raw)
    with refused_with(RunFolderError, str(tmp_path)):
        open_run(tmp_path)


@FUZZ
@given(data=st.data())
def test_a_configuration_that_says_anything_is_used_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    (tmp_path / "config.json").write_text(json.dumps(changed(data.draw, description())))
    with refused_with(RunFolderError, str(tmp_path)):
        use_run(tmp_path)


SECTIONS = ("env", "network", "learner", "replay", "actor", "eval")
LEAVES = [path for path in paths(asdict(preset("drqn"))) if path[-1] not in SECTIONS]


@FUZZ
@given(path=st.sampled_from(LEAVES), value=JSON)
def test_a_setting_that_cannot_be_is_named(tmp_path: Path, path: tuple[str, ...], value: Any) -> None:
    told = description()
    place = told["config"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(told))
    with refused_with(RunFolderError, path[-1]):
        assert setting(open_run(tmp_path).config, ".".join(path)) == value


# Studies

STUDY = """
seeds = [0, 1]
episodes = 7
[settings]
preset = "gridworld"
minutes = 1.0
env.kwargs.size = 3
[axes.size]
small = { env.kwargs.size = 3 }
large = { env.kwargs.size = 5 }
[axes.memory]
GRU = { network.core = "gru" }
none = { network.core = "none", seeds = [4] }
[references.small]
best = 0.5
[elsewhere.other]
env = { flicker_probability = 0.5 }
"""
BIG = "0x" + "f" * 5_000
ABSURD_STUDIES = {
    "lists in lists": STUDY.replace("episodes = 7", "episodes = " + "[" * DEEP),
    "tables in tables": STUDY.replace("episodes = 7", "episodes = " + "{a=" * 20_000),
    "names in names": STUDY.replace("env.kwargs.size = 3\n", f"env.kwargs{'.a' * 3_000} = 3\n", 1),
    "names in names, a little": STUDY.replace("env.kwargs.size = 3\n", f"env.kwargs{'.a' * 300} = 3\n", 1),
    "a number of 5000 digits": STUDY.replace("minutes = 1.0", "seed = " + "9" * 5_000),
    "5000 hexadecimal digits": STUDY.replace("minutes = 1.0", f"total_steps = {BIG}"),
    "5000 hexadecimal digits for a fraction": STUDY.replace("minutes = 1.0", f"minutes = {BIG}"),
    "such a number of episodes": STUDY.replace("episodes = 7", f"episodes = {BIG}"),
    "such a seed": STUDY.replace("seeds = [0, 1]", f"seeds = [{BIG}]"),
    "such a seed of one run": STUDY.replace("minutes = 1.0", f"seed = {BIG}"),
    "such a reference": STUDY.replace("best = 0.5", f"best = {BIG}"),
    "such an argument": STUDY.replace("env.kwargs.size = 3\n", f"env.kwargs.far = {BIG}\n", 1),
    "a reference that is no number": STUDY.replace("best = 0.5", "best = nan"),
    "a reference that is true": STUDY.replace("best = 0.5", "best = true"),
    "true for episodes": STUDY.replace("episodes = 7", "episodes = true"),
    "a day as an argument": STUDY.replace("env.kwargs.size = 3\n", "env.kwargs.day = 1979-05-27\n", 1),
    "NaN minutes": STUDY.replace("minutes = 1.0", "minutes = nan"),
    "a million seeds": STUDY.replace("seeds = [0, 1]", f"seeds = {list(range(400_000))}"),
    "seeds of one run": STUDY.replace("seeds = [4]", f"seeds = {list(range(400_000))}"),
    "ten to the twentieth runs": STUDY
    + "".join(f"[axes.a{n}]\n" + "".join(f"v{v} = {{}}\n" for v in range(10)) for n in range(20)),
    "more runs than can be written": STUDY + "".join(f"[axes.a{n}]\nx = {{}}\ny = {{}}\n" for n in range(20_000)),
    "an axis without values": STUDY + "[axes.none]\n",
    "a long name": STUDY.replace("GRU =", f"{'G' * 300} ="),
    "too large": STUDY + "#" * 5 * 1024**2,
}


@pytest.mark.parametrize("what", ABSURD_STUDIES)
def test_an_absurd_study_is_refused_and_takes_no_memory(tmp_path: Path, what: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(ABSURD_STUDIES[what])
    assert ABSURD_STUDIES[what] != STUDY
    with little_memory(), pytest.raises(ConfigError, match=re.escape(str(path))) as refused:
        load_study(path)
    assert len(str(refused.value)) < 1_500


TOML = [
    "nan",
    "-inf",
    "true",
    "[]",
    "[1]",
    "{}",
    "{a = 1}",
    '""',
    '"\\u0000"',
    "1979-05-27",
    "0xffffffffffffffffff",
    "1e400",
    "-1",
]


@FUZZ
@given(data=st.data())
def test_a_study_that_says_anything_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    path, lines = tmp_path / "study.toml", STUDY.splitlines()
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(lines) - 1))
        kind = data.draw(st.sampled_from(["value", "drop", "again", "text"]))
        if kind == "value":
            name, equals, _ = lines[at].partition(" = ")
            lines[at] = name + equals + data.draw(st.sampled_from(TOML))
        elif kind == "drop":
            lines[at] = ""
        elif kind == "again":
            lines.insert(at, lines[data.draw(st.integers(0, len(lines) - 1))])
        else:
            lines[at] = data.draw(st.text(max_size=20))
    path.write_bytes("\n".join(lines).encode(errors="replace"))
    with refused_with(ConfigError, str(path)):
        for cell in load_study(path).cells:
            json.dumps([asdict(cell.config), *map(asdict, cell.elsewhere.values())])
            assert len(cell.name) <= 200
    path.write_bytes(data.draw(st.binary(max_size=100)))
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        load_study(path)


# The command line

FLAGS = sorted(
    {"--" + ".".join(path).replace("_", "-") for path in LEAVES} | {"--resume", "--init-from", "--dry-run", "--env"}
)
VALUES = st.one_of(
    st.sampled_from(
        ["", "nan", "-nan", "inf", "1e999", "-1", "0", "None", "auto", "true", "9" * 5_000, "9" * 4_000, "0x10"]
    ),
    st.sampled_from(
        ["[" * DEEP, '{"a":' * DEEP, '{"a": 1}', '{"a": NaN}', "[]", '{"a": ' + "9" * 5_000 + "}", "\udcff", "٣"]
    ),
    st.text(st.characters(exclude_characters="\0"), max_size=8),
)


@settings(FUZZ, max_examples=FUZZ.max_examples // 3)
@given(words=st.lists(st.tuples(st.sampled_from(FLAGS), VALUES, st.booleans()), min_size=1, max_size=2))
def test_arguments_of_any_kind_are_understood_or_refused(tmp_path: Path, words: list[tuple[str, str, bool]]) -> None:
    argv = [word for flag, value, joined in words for word in ([f"{flag}={value}"] if joined else [flag, value])]
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path)
        with suppress(ConfigError, RunFolderError, SystemExit):  # the last one after help
            json.dumps(asdict(parse_train(argv, "drqn-dist train").config))


ABSURD_ARGUMENTS = {
    "lists in lists": ("--env.kwargs", "[" * DEEP, "env.kwargs"),
    "tables in tables": ("--env.kwargs", '{"a":' * 500 + "1" + "}" * 500, "env.kwargs"),
    "an argument of 5000 digits": ("--env.kwargs", '{"a": ' + "9" * 5_000 + "}", "env.kwargs"),
    "a seed of 5000 digits": ("--seed", "9" * 5_000, "seed"),
    "a seed of 4000 digits": ("--seed", "9" * 4_000, "seed is 9"),
    "NaN": ("--eval.settled-training-return", "nan", "eval.settled_training_return is nan"),
    "infinite": ("--eval.settled-training-return", "1e999", "eval.settled_training_return is inf"),
    "no preset": ("--preset", "", "unknown preset ''"),
}


@pytest.mark.parametrize("what", ABSURD_ARGUMENTS)
def test_an_absurd_argument_is_refused(what: str) -> None:
    flag, value, message = ABSURD_ARGUMENTS[what]
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_train([flag, value], "drqn-dist train")


@pytest.mark.parametrize("text", ["9" * 5_000, "1,,2", "²", "-1", "0", "1;2", "1 2", "٣٣٣٣٣٣٣٣٣٣", "nan", ""])
def test_numbers_of_actors_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--actors is ") as refused:
        counts("--actors", text)
    assert len(str(refused.value)) < 500
