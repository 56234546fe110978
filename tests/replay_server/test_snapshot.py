"""The file of priorities: what is read is what was written, or nothing."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors

from replay_server.snapshot import Snapshot, load_snapshot, read_snapshot

SNAPSHOT = Snapshot(7, (40, 3), "0.9", np.array([1.0, 0.25, 2.0]), {(0, 1): [0, 8], (2, 0): [3, 5, 9, 11]})


def same(one: Snapshot, other: Snapshot) -> bool:
    numbers = [(s.first_window, s.stamp, s.scale, s.weights.tolist(), s.seen) for s in (one, other)]
    return numbers[0] == numbers[1]


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    for number, snapshot in enumerate((SNAPSHOT, Snapshot())):
        (tmp_path / str(number)).write_bytes(snapshot.to_bytes())
        assert same(load_snapshot(tmp_path / str(number)), snapshot)


def test_the_checksum_is_that_of_all_that_the_file_says(tmp_path: Path) -> None:
    """Worked out here by hand, from the file as another program reads it."""
    (tmp_path / "s").write_bytes(SNAPSHOT.to_bytes())
    said = (
        b'{"first_window": 7, "stamp": [40, 3], "scale": "0.9"}'
        + b"seen_counts int64 (2,)\n"
        + struct.pack("<qq", 2, 4)
        + b"seen_edges int64 (6,)\n"
        + struct.pack("<qqqqqq", 0, 8, 3, 5, 9, 11)
        + b"seen_keys int64 (2, 2)\n"
        + struct.pack("<qqqq", 0, 1, 2, 0)
        + b"weights float64 (3,)\n"
        + struct.pack("<ddd", 1.0, 0.25, 2.0)
    )
    with safetensors.safe_open(tmp_path / "s", framework="numpy") as file:
        assert file.metadata()["crc32"] == str(zlib.crc32(said))


def test_a_file_with_any_changed_byte_says_the_same_or_is_damaged(tmp_path: Path) -> None:
    """Only spaces that fill up the header may be other ones."""
    path, whole = tmp_path / "s", SNAPSHOT.to_bytes()
    read = 0
    for at in range(len(whole)):
        for bit in (1, 32, 128):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            try:
                assert same(load_snapshot(path), SNAPSHOT), (at, bit)
                read += 1
            except ValueError:
                assert read_snapshot(path).weights.size == 0
    assert read < 10, read


def test_a_file_that_is_cut_off_anywhere_is_damaged(tmp_path: Path) -> None:
    path, whole = tmp_path / "s", SNAPSHOT.to_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"."):
            load_snapshot(path)


@pytest.mark.parametrize("facts", ["[" * 100_000, "{}", "7", '{"first_window": 1, "stamp": 3, "scale": ""}', "\0"])
def test_facts_that_cannot_be_are_damage(tmp_path: Path, facts: str) -> None:
    whole = SNAPSHOT.to_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:end])
    crc = zlib.crc32(facts.encode())
    for name in ("seen_counts", "seen_edges", "seen_keys", "weights"):
        first, last = header[name]["data_offsets"]
        kind = {"I64": "int64", "F64": "float64"}[header[name]["dtype"]]
        crc = zlib.crc32(f"{name} {kind} {tuple(header[name]['shape'])}\n".encode(), crc)
        crc = zlib.crc32(whole[end + first : end + last], crc)
    header["__metadata__"] |= {"meta": facts, "crc32": str(crc)}
    new = json.dumps(header).encode()
    (tmp_path / "s").write_bytes(struct.pack("<Q", len(new)) + new + whole[end:])
    with pytest.raises(ValueError, match=r"deep|first_window|subscriptable|unpack|Expecting"):
        load_snapshot(tmp_path / "s")
