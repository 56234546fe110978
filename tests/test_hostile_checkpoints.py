"""Whatever a checkpoint says is data: it is gone on from, or refused with a clear word."""

from __future__ import annotations

import json
import re
import struct
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drqn_dist.checkpoint import load, save
from drqn_dist.envs.make import env_spec
from drqn_dist.errors import CheckpointError
from drqn_dist.experiments.run_folder import RunFolder, create_run
from drqn_dist.training.origin import resumed_state
from drqn_dist.training.serial import SerialSession
from drqn_dist.training.session import Report, Saved
from drqn_dist.training.stop import StopRequest
from drqn_dist.training.train import _Run
from tests.hostile import DEEP, FUZZ, changed, little_memory, refused_with
from tests.runs import maze_config


def checkpoint_file(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def plain_header(version: str = "3", meta: str = "{}", tensors: dict[str, Any] | None = None) -> bytes:
    return json.dumps(
        {"__metadata__": {"format": "drqn-dist-checkpoint", "version": version, "meta": meta}} | (tensors or {})
    ).encode()


def one_tensor(dtype: str, shape: list[int], offsets: list[int]) -> bytes:
    return plain_header(tensors={"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}})


TWICE = {name: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]} for name in "xy"}
ABSURD_CHECKPOINTS = {
    "a header of 2**60 bytes": struct.pack("<Q", 2**60) + b"{}",
    "a header of 2**64 - 1 bytes": struct.pack("<Q", 2**64 - 1) + b"{}",
    "a tensor of 2**60 bytes": checkpoint_file(one_tensor("F32", [2**58], [0, 2**60])),
    "a tensor of 2**80 numbers": checkpoint_file(one_tensor("F32", [2**40, 2**40], [0, 4]), bytes(4)),
    "an offset below zero": checkpoint_file(one_tensor("U8", [1], [-1, 0]), b"x"),
    "numbers of an unknown type": checkpoint_file(one_tensor("F4", [2], [0, 1]), b"x"),
    "two tensors in one place": checkpoint_file(plain_header(tensors=TWICE), b"x"),
    "a header that is nested": checkpoint_file(b'{"a":' * DEEP + b"}" * DEEP),
    "a header that is a list": checkpoint_file(b"[]"),
    "no metadata": checkpoint_file(b'{"__metadata__":null}'),
    "metadata that is nested": checkpoint_file(plain_header(meta="[" * DEEP)),
    "metadata that is nested and whole": checkpoint_file(plain_header(meta="[" * 500 + "]" * 500)),
    "metadata that is a number of 5000 digits": checkpoint_file(plain_header(meta="9" * 5_000)),
    "metadata that is a list": checkpoint_file(plain_header(meta="[]")),
    "metadata that is no text": checkpoint_file(b'{"__metadata__":{"format":"drqn-dist-checkpoint","version":3}}'),
    "metadata that is half a character": checkpoint_file(plain_header(meta='{"\\ud800": "\\ud800')),
    "another version of many letters": checkpoint_file(plain_header(version="9" * 10**6)),
    "no checksum": checkpoint_file(plain_header(version="4")),
    "nothing": b"",
    "seven bytes": bytes(7),
    "zeros": bytes(10_000),
}


@pytest.mark.parametrize("what", ABSURD_CHECKPOINTS)
def test_an_absurd_checkpoint_is_refused_and_takes_no_memory(tmp_path: Path, what: str) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(ABSURD_CHECKPOINTS[what])
    with little_memory(), pytest.raises(CheckpointError, match=re.escape(str(path))) as refused:
        load(path)
    assert len(str(refused.value)) < 1_000


def test_a_checkpoint_that_is_larger_than_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 2))
        file.truncate(2**42)  # holds no blocks
    with little_memory(), pytest.raises(CheckpointError, match="does not fit into memory"):
        load(path)


@FUZZ
@given(raw=st.binary(max_size=300), headed=st.booleans())
def test_any_bytes_are_no_checkpoint(tmp_path: Path, raw: bytes, headed: bool) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(checkpoint_file(raw) if headed else raw)
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        load(path)


@FUZZ
@given(data=st.data())
def test_a_header_that_says_anything_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    tensors = {n: {"dtype": "F32", "shape": [1, 2], "data_offsets": [8 * i, 8 * i + 8]} for i, n in enumerate("xy")}
    header = changed(data.draw, json.loads(plain_header(meta='{"a": [1]}', tensors=tensors)))
    path = tmp_path / "c.safetensors"
    path.write_bytes(checkpoint_file(json.dumps(header).encode(), bytes(16)))
    with suppress(CheckpointError):
        found, meta = load(path)
        assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())
        assert isinstance(meta, dict)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Saved]:
    """A run after some updates, and what it saved."""
    config = maze_config(tmp_path_factory.mktemp("runs"))
    run = create_run(config, [])
    with closing(SerialSession(config)) as serial:
        while serial.learner.state.updates < 2:
            serial.turn(Report())
        saved = serial.save()
    monitor = {"episodes": [{"score": 1.0, "steps": 3, "epsilon": 0.1}], "evaluations": [[1, [0.5, 2.0]]]}
    meta = saved.meta | {"wall_s": 1.5, "starts": 1, "final_seed": 3, "monitor": monitor}
    return run, Saved(saved.tensors, json.loads(json.dumps(meta)))


def test_what_a_run_saves_is_gone_on_from(session: tuple[RunFolder, Saved]) -> None:
    """The ground on which the next test stands."""
    run, saved = session
    save(run.checkpoints.folder / "checkpoint_0000000002.safetensors", saved.tensors, saved.meta)
    assert go_on(run) == []


def go_on(run: RunFolder) -> list[str]:
    """What there is to say of a session that goes on from the run's checkpoint; it trains a little."""
    state = resumed_state(run, run.config)
    with closing(SerialSession(run.config, state)) as serial:
        _Run(run.config, env_spec(run.config.env), serial, run, state, StopRequest())
        notes = serial.advance(0.0).notes
        for _ in range(3):
            serial.turn(Report())
        json.dumps(serial.save().meta)
    return [note for note in notes if "new games" in note]


@FUZZ
@given(data=st.data())
def test_a_checkpoint_whose_facts_cannot_be_is_refused_before_anything_starts(
    session: tuple[RunFolder, Saved], data: st.DataObject
) -> None:
    run, saved = session
    facts = {name: value for name, value in saved.meta.items() if name != "serial"}
    path = run.checkpoints.folder / "checkpoint_0000000002.safetensors"
    save(path, saved.tensors, changed(data.draw, facts) | {"serial": saved.meta["serial"]})
    with refused_with(CheckpointError, str(path)), little_memory():
        go_on(run)


LIMITER = {
    "inserted_steps": 9,
    "counted_steps": 9,
    "sampled_steps": 9,
    "filled_steps": 9,
    "debt": 16,
    "bounds": ["8", "1"],
}
IMPOSSIBLE: list[tuple[str, Any, str]] = [
    ("learner", None, "learner is None, but must be a table"),
    ("learner.updates", 1.5, "learner.updates is 1.5, which cannot be"),
    ("learner.inserted_steps", -1, "learner.inserted_steps is -1, which cannot be"),
    ("agent_steps", 2**62, f"agent_steps is {2**62}, which cannot be"),
    ("incarnation", True, "incarnation is True, which cannot be"),
    ("replay", [], "replay is [], but must be a list with an entry for each shard"),
    ("replay", {}, "replay is {}, but must be a list"),
    ("replay.0", 3, "replay[0] is 3, but must be a table"),
    ("replay.0.limiter.debt", "0", "replay[0].limiter.debt is '0', which cannot be"),
    ("replay.0.limiter.bounds", [1], "replay[0].limiter.bounds is [1], which cannot be"),
    ("replay.0.sampler.largest", float("inf"), "replay[0].sampler.largest is inf, which cannot be"),
    ("replay.0.sampler.rng", {"bit_generator": "PCG64"}, "replay[0].sampler.rng is {'bit_generator': 'PCG64'}, which"),
    ("replay.0.counts.rejected", None, "replay[0].counts.rejected is None, which cannot be"),
    ("monitor.episodes.0.score", "1", "monitor.episodes[0].score is '1', which cannot be"),
    ("monitor.evaluations.0", [1, []], "monitor.evaluations[0] is [1, []], which cannot be"),
    ("wall_s", float("nan"), "wall_s is nan, which cannot be"),
    ("starts", [], "starts is [], which cannot be"),
    ("turn", 0.5, "turn is 0.5, which cannot be"),
    ("serial", [], "serial is [], which cannot be"),
]


def with_fact(meta: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    """The same, where the entry of this name has that value."""
    meta = json.loads(json.dumps(meta))
    *way, last = (int(key) if key.isdecimal() else key for key in name.split("."))
    place: Any = meta
    for key in way:
        place = place[key]
    place[last] = value
    return meta


@pytest.mark.parametrize(("name", "value", "message"), IMPOSSIBLE)
def test_a_fact_that_cannot_be_is_named_with_its_file(
    session: tuple[RunFolder, Saved], name: str, value: Any, message: str
) -> None:
    run, saved = session
    path = run.checkpoints.write(2, saved.tensors, with_fact(saved.meta, name, value))
    with pytest.raises(CheckpointError, match=re.escape(f"{path} cannot be gone on from: {message}")):
        resumed_state(run, run.config)


def test_any_debt_is_possible(session: tuple[RunFolder, Saved]) -> None:
    """Shards learn late of one another, and a learner that is away for long lets each run to its own bound."""
    run, saved = session
    limiter = LIMITER | {"debt": -1_000}
    run.checkpoints.write(
        saved.meta["learner"]["updates"], saved.tensors, with_fact(saved.meta, "replay.0.limiter", limiter)
    )
    assert resumed_state(run, run.config).meta["replay"][0]["limiter"] == limiter


@pytest.mark.parametrize("name", ["learner", "agent_steps", "incarnation", "replay"])
def test_a_fact_that_lacks_is_named(session: tuple[RunFolder, Saved], name: str) -> None:
    run, saved = session
    run.checkpoints.write(2, saved.tensors, {key: value for key, value in saved.meta.items() if key != name})
    with pytest.raises(CheckpointError, match=f"it lacks {name}|{name} is None"):
        resumed_state(run, run.config)


def test_a_tree_of_any_size_takes_no_more_memory_than_the_replay_may_need(session: tuple[RunFolder, Saved]) -> None:
    run, saved = session
    run.checkpoints.write(2, saved.tensors, with_fact(saved.meta, "replay.0.sampler.capacity", 2**61))
    with little_memory():
        assert go_on(run) == []


@pytest.mark.parametrize("name", ["network.head.weight", "target.head.weight", "optimizer.0.exp_avg"])
def test_weights_that_are_no_fractions_are_refused(session: tuple[RunFolder, Saved], name: str) -> None:
    run, saved = session
    run.checkpoints.write(2, saved.tensors | {name: saved.tensors[name].to(torch.int64)}, saved.meta)
    with pytest.raises(CheckpointError, match=rf"{name} is of shape .* of torch\.int64 there and of shape .*\) here"):
        go_on(run)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("actor 0/buffer/rows/length", torch.tensor([0, 10]), "hold [0, 10] steps; 0 to 8 fit here"),
        ("actor 0/buffer/rows/length", torch.tensor([-1, 0]), "hold [-1, 0] steps"),
        ("actor 0/buffer/rows/states", torch.zeros(2, 8, 1, 16, dtype=torch.float64), "float64 [2, 8, 1, 16]"),
        ("actor 0/buffer/rows/states", torch.zeros(2, 7, 1, 16), "float32 [2, 7, 1, 16], but float32 [2, 8, 'S', 'H']"),
        ("published/vector", torch.zeros(3), "'vector' is float32 [3], but float32"),
    ],
)
def test_a_state_of_actors_that_cannot_be_is_said(
    session: tuple[RunFolder, Saved], name: str, value: torch.Tensor, said: str
) -> None:
    run, saved = session
    run.checkpoints.write(2, saved.tensors | {f"serial.{name}": value}, saved.meta)
    (note,) = go_on(run)
    assert note.startswith("actors begin new games: ")
    assert said in note


OTHERS = st.builds(
    lambda shape, dtype: torch.ones(shape).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.int64, torch.bool, torch.bfloat16, torch.float64, torch.uint8]),
)


@FUZZ
@given(data=st.data())
def test_actors_whose_state_cannot_be_begin_new_games(session: tuple[RunFolder, Saved], data: st.DataObject) -> None:
    run, saved = session
    path = run.checkpoints.folder / "checkpoint_0000000002.safetensors"
    tensors, meta = saved.tensors, saved.meta
    if data.draw(st.booleans()):
        meta = meta | {"serial": changed(data.draw, meta["serial"])}
    else:
        tensors = tensors | {data.draw(st.sampled_from(sorted(tensors))): data.draw(OTHERS)}
    save(path, tensors, meta)
    with refused_with(CheckpointError, "the checkpoint belongs to another "), little_memory():
        go_on(run)
