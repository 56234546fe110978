"""What is fuzzed: a function for each reader, and inputs from which the search goes out.

A reader may refuse what it is given, with the error that it promises; anything else is a fault.
"""

from __future__ import annotations

import contextlib
import json
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import safetensors.torch
import torch

from drqn_dist import checkpoint, codec
from drqn_dist.config import TrainConfig
from drqn_dist.errors import CheckpointError, FragmentError, RunFolderError
from drqn_dist.experiments.run_folder import open_run
from drqn_dist.fragment import Fragment
from drqn_dist.training.facts import check_facts
from replay_server import segments
from replay_server.snapshot import Snapshot, load_snapshot

LIMIT = 1 << 16
"""Bytes of a fragment, packed or not."""
_PATH = Path("fuzzed")


def fragment(data: bytes) -> None:
    """The first byte tells whether the checksum is made right first, which no chance would do."""
    raw = data[1:]
    if data[:1] > b"\x7f" and len(raw) > 10:
        raw = struct.pack("<4sHI", codec._MAGIC, codec.SCHEMA_VERSION, zlib.crc32(raw[10:])) + raw[10:]
    header = None
    with contextlib.suppress(FragmentError):
        header = codec.decode_header(raw, LIMIT)
    with contextlib.suppress(FragmentError):
        codec.decode_rewards(raw, LIMIT)
    with contextlib.suppress(FragmentError):
        read = codec.decode(raw, LIMIT)
        assert header is not None
        assert read.num_steps == header.num_steps
        assert read.observations.nbytes == header.raw_bytes <= LIMIT
        again = codec.decode(codec.encode(read), 2 * LIMIT)
        np.testing.assert_array_equal(again.observations, read.observations)
        np.testing.assert_array_equal(again.actions, read.actions)


def journal(data: bytes) -> None:
    """Every byte of a segment is of a whole record, damaged, or of the torn tail; serial numbers rise."""
    raw = _sealed(data[1:]) if data[:1] > b"\x7f" else data[1:]
    for newest in (True, False):
        contents = segments.Contents()
        found = [record for _, record in segments.read_segment("segment", raw, newest, contents)]
        whole = sum(segments.RECORD_HEAD_BYTES + len(record.payload) for record in found)
        rest = len(raw) - whole - contents.damaged_bytes - contents.torn_bytes
        assert rest in (0, segments._SEGMENT.size)
        serials = [record.serial for record in found]
        assert serials == sorted(set(serials))
        assert len(contents.stored) <= len(found)
        for record in found:
            with contextlib.suppress(FragmentError):
                codec.decode_header(record.payload, LIMIT)


def _sealed(raw: bytes) -> bytes:
    """With right checksums of the head and of all records whose lengths fit."""
    parts = bytearray(raw)
    head = segments._SEGMENT.size
    if len(parts) >= head:
        parts[head - 4 : head] = zlib.crc32(parts[: head - 4]).to_bytes(4, "little")
    at = parts.find(segments._RECORD_MAGIC)
    while at >= 0:
        begin = at + segments._RECORD.size
        length = int.from_bytes(parts[at + 4 : at + 8], "little")
        if begin + length <= len(parts):
            parts[at + 8 : at + 12] = zlib.crc32(parts[begin : begin + length]).to_bytes(4, "little")
            parts[begin - 4 : begin] = zlib.crc32(parts[at : begin - 4]).to_bytes(4, "little")
        at = parts.find(segments._RECORD_MAGIC, at + 1)
    return bytes(parts)


def checkpoint_file(data: bytes) -> None:
    with contextlib.suppress(CheckpointError):
        _, meta = checkpoint._parsed(data, _PATH)
        check_facts(meta, _PATH)


def snapshot(data: bytes) -> None:
    file: Any = SimpleNamespace(read_bytes=lambda: data)  # a real one is a hundred times slower
    with contextlib.suppress(ValueError):
        load_snapshot(file)


def config(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(RunFolderError):
        Path(folder, "config.json").write_bytes(data)
        open_run(Path(folder))


READERS: dict[str, Callable[[bytes], None]] = {
    "fragment": fragment,
    "journal": journal,
    "checkpoint": checkpoint_file,
    "snapshot": snapshot,
    "config": config,
}


def seeds(reader: str) -> list[bytes]:
    """Inputs from which the search goes out, all of them whole."""
    shape = (2, 3)
    observations = np.arange(5 * 6, dtype=np.uint8).reshape(5, *shape)
    one = Fragment(
        observations=observations,
        actions=np.array([0, 1, 2, 1]),
        rewards=np.ones(4, np.float32),
        terminated=True,
        truncated=False,
        first_step=0,
        actor_id=1,
        env_id=2,
        episode_id=3,
        sequence_no=4,
        weight_version=5,
        priorities=np.ones(2, np.float32),
        states={0: np.zeros((1, 2), np.float32)},
    )
    packed = codec.encode(one)
    if reader == "fragment":
        return [b"\x00" + packed, b"\xff" + packed]
    if reader == "journal":
        records = [segments.Record(n, 2 * n, 4 * (n + 1), n + 1, packed) for n in range(3)]
        whole = segments.pack_segment_head(7) + b"".join(segments.pack_record_head(r) + r.payload for r in records)
        return [b"\x00" + whole, b"\xff" + whole, b"\xff" + whole[:-9]]
    if reader == "checkpoint":
        facts = {"learner": {"updates": 3, "inserted_steps": 9}, "replay": [None], "incarnation": 0, "agent_steps": 9}
        # Of the version without a SHA-256, so that what is changed is looked at.
        header = {"format": checkpoint.FORMAT, "version": "3", "meta": json.dumps(facts)}
        return [safetensors.torch.save({"network.a": torch.ones(2, 2)}, header)]
    if reader == "snapshot":
        return [Snapshot(5, (9, 18), "scale", np.ones(3), {(0, 1): [4, 6]}).to_bytes()]
    versions = {"python": "3.11"}
    return [json.dumps({"config": asdict(TrainConfig()), "versions": versions, "machine": {}, "history": []}).encode()]
