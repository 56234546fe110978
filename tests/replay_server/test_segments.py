"""Whatever happens to a journal's files, what is read was stored, in order, and is as much as can be."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay_server import journal as journals
from replay_server import segments
from replay_server.segments import Contents, Record, read_journal
from replay_server.snapshot import read_snapshot
from tests.replay_server.journaled import CONFIG, content, fill, make_replay, pieces
from tests.replay_server.validity import check_replay

CAPACITY_1045 = replace(CONFIG, capacity_steps=1_045)


def test_the_format_is_this_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Journals that were written once are read for ever. The CRC-32 of "abc" is 352441c2."""
    monkeypatch.setattr(segments, "_boot", lambda: b"0123456789abcdef")
    head = b"DRQNJRN1" + bytes.fromhex("2a00000000000000") + b"0123456789abcdef"
    head += zlib.crc32(head).to_bytes(4, "little")
    record_head = b"\xd5REC" + bytes.fromhex(
        "03000000 c2412435 0100000000000000 0200000000000000 0300000000000000 04000000"
    )
    record_head += zlib.crc32(record_head).to_bytes(4, "little")
    record = Record(serial=1, first_window=2, inserted_steps=3, live=4, payload=b"abc")
    assert segments.segment_name(1) == "00000000000000000001.segment"
    assert segments.pack_segment_head(42) == head
    assert segments.pack_record_head(record) == record_head
    (tmp_path / "00000000000000000001.segment").write_bytes(head + record_head + b"abc")
    contents = read_journal(tmp_path)
    assert (contents.log, contents.this_boot, contents.records) == (42, True, [record])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record]]:
    """A journal of three segments, one fragment of the first one evicted."""
    folder = tmp_path_factory.mktemp("journal") / "j"
    fill(folder, 140, CAPACITY_1045)
    records = read_journal(folder).records
    assert len(list(folder.glob("*.segment"))) == 3
    return folder, records


def damaged(written: tuple[Path, list[Record]], to: Path, change: Callable[[list[Path]], None]) -> Contents:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(written[0], to)
    change(sorted(to.glob("*.segment")))
    return read_journal(to)


def is_subsequence(records: list[Record], of: list[Record]) -> bool:
    rest = iter(of)
    return all(record in rest for record in records)


def test_a_tail_torn_at_any_byte_is_cut_off_and_the_rest_is_whole(
    written: tuple[Path, list[Record]], tmp_path: Path
) -> None:
    size = sorted(written[0].glob("*.segment"))[-1].stat().st_size
    full = len(written[1])
    for lost in range(1, 400):
        contents = damaged(written, tmp_path / "j", lambda paths, lost=lost: os.truncate(paths[-1], size - lost))  # type: ignore[misc]
        assert contents.records == written[1][: len(contents.records)]
        assert full - 4 <= len(contents.records) < full
        assert contents.whole
        if lost % 57 == 0:
            replay = make_replay(CAPACITY_1045)
            replay.begin(None, tmp_path / "j")
            stored = [fragment.payload for fragment in replay._store._fragments.values()]
            assert stored == [record.payload for record in contents.stored]
            assert read_journal(tmp_path / "j").torn_bytes == 0
            replay.stop()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_costs_only_the_records_that_it_hits(
    written: tuple[Path, list[Record]], tmp_path: Path, data: st.DataObject
) -> None:
    def change(paths: list[Path]) -> None:
        for _ in range(data.draw(st.integers(1, 3))):
            path = data.draw(st.sampled_from(paths))
            raw = bytearray(path.read_bytes())
            at = data.draw(st.integers(0, len(raw) - 1))
            kind = data.draw(st.sampled_from(["flip", "cut", "insert", "zeros", "swap"]))
            if kind == "flip":
                raw[at] ^= 1 << data.draw(st.integers(0, 7))
            elif kind == "cut":
                del raw[at : at + data.draw(st.integers(1, 300))]
            elif kind == "insert":
                raw[at:at] = data.draw(st.binary(max_size=40))
            elif kind == "zeros":
                raw[at : at + 200] = bytes(len(raw[at : at + 200]))
            else:
                raw = raw[at:] + raw[:at]
            path.write_bytes(raw or b"\0")

    contents = damaged(written, tmp_path / "j", change)
    assert is_subsequence(contents.records, written[1])
    assert len(contents.records) > 20  # most of at least one segment
    replay = make_replay()
    replay.begin(None, tmp_path / "j")
    check_replay(replay)
    stored = [fragment.payload for fragment in replay._store._fragments.values()]
    assert stored == [record.payload for record in contents.stored][-len(stored) :]
    before = content(replay)
    replay.stop()
    # What comes back from a journal that was damaged is a whole one.
    again = make_replay()
    again.begin(None, tmp_path / "j")
    assert content(again)[0][-len(before[0]) :] == before[0]
    again.stop()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=300), as_snapshot=st.booleans())
def test_any_bytes_are_data(tmp_path: Path, raw: bytes, as_snapshot: bool) -> None:
    folder = tmp_path / "j"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if as_snapshot:
        (folder / journals.SNAPSHOT).write_bytes(raw)
        snapshot = read_snapshot(folder / journals.SNAPSHOT)
        assert (snapshot.first_window, len(snapshot.weights), snapshot.seen) == (0, 0, {})
    else:
        (folder / "00000000000000000000.segment").write_bytes(raw)
        assert read_journal(folder).records == []


def test_a_record_that_claims_a_huge_length_allocates_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "j"
    fill(folder, 1)
    path = next(folder.glob("*.segment"))
    head = segments._RECORD.pack(b"\xd5REC", 2**32 - 1, 0, 0, 0, 8, 1, 0)[:-4]
    path.write_bytes(path.read_bytes() + head + segments._CRC.pack(zlib.crc32(head)))
    contents = read_journal(folder)
    assert (len(contents.records), contents.torn_bytes) == (1, 44)


@pytest.mark.parametrize("numbers", [(2**63 - 1, 0, 8, 1), (0, 2**63 - 1, 8, 1), (0, 0, -1, 1), (-5, 0, 8, 1)])
def test_numbers_that_cannot_be_are_damage(tmp_path: Path, numbers: tuple[int, int, int, int]) -> None:
    folder = tmp_path / "j"
    fill(folder, 1)
    (record,) = read_journal(folder).records
    path = next(folder.glob("*.segment"))
    serial, first_window, inserted, live = numbers
    length, crc = len(record.payload), zlib.crc32(record.payload)
    head = segments._RECORD.pack(b"\xd5REC", length, crc, serial, first_window, inserted, live, 0)[:-4]
    head += segments._CRC.pack(zlib.crc32(head))
    path.write_bytes(path.read_bytes()[: segments._SEGMENT.size] + head + record.payload)
    replay = make_replay()
    replay.begin(None, folder)
    assert replay.stats().fragments == 0
    assert replay.push(pieces(1)[0].payload)


def test_every_prefix_of_what_was_written_is_a_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that crashes keeps of each file what was synced at least, and of the rest any prefix; files that were
    created since the last sync of their folder may be missing altogether."""
    folder = tmp_path / "j"
    replay = fill(folder, 100)
    assert replay._journal is not None
    replay._journal.sync()
    safe = {path.name: path.stat().st_size for path in folder.glob("*.segment")}
    synced = 100
    for piece in pieces(240)[100:]:
        replay.push(piece.payload)
    full = read_journal(folder).records
    rng = np.random.default_rng(0)
    monkeypatch.setattr(segments, "_boot", lambda: b"another boot ...")
    for _ in range(60):
        crashed = tmp_path / "crashed"
        shutil.rmtree(crashed, ignore_errors=True)
        shutil.copytree(folder, crashed)
        for path in crashed.glob("*.segment"):
            if path.name not in safe and rng.random() < 0.3:
                path.unlink()
                continue
            os.truncate(path, int(rng.integers(safe.get(path.name, 0), path.stat().st_size + 1)))
        contents = read_journal(crashed)
        assert [r for r in contents.records if r.serial < synced] == [r for r in full if r.serial < synced]
        assert is_subsequence(contents.records, full)
        after = make_replay()
        after.begin(None, crashed)
        check_replay(after)
        after.stop()
