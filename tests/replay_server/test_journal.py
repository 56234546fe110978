"""The journal as it is written: what reaches the disk, whatever the disk does, and whoever is killed meanwhile."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from replay_server import journal as journals
from replay_server import replay as replays
from replay_server import segments
from replay_server.segments import Record, read_journal
from replay_server.snapshot import read_snapshot
from tests.replay_server.journaled import CONFIG, FullDisk, content, fill, killed, make_replay, pieces
from tests.replay_server.test_replay import draw
from tests.replay_server.validity import check_replay
from tests.runs import until


def test_segments_go_once_they_are_evicted_and_the_disk_holds_little_more_than_the_replay(tmp_path: Path) -> None:
    config = replace(CONFIG, capacity_steps=16_000)
    replay = fill(tmp_path / "j", 9_000, config)
    assert replay._journal is not None
    replay._journal.sync()
    stored = replay.stats()
    # A record's head is 44 bytes; a segment that is neither full nor evicted is a sixteenth at either end.
    most = stored.stored_bytes + 44 * stored.fragments
    on_disk = sum(path.stat().st_size for path in (tmp_path / "j").glob("*.segment"))
    assert most < on_disk <= most * (1 + 2 / journals.SEGMENTS)
    assert replay._journal.disk_bytes == on_disk
    after = make_replay(config)
    after.begin(None, tmp_path / "j")
    assert content(after)[:3] == content(replay)[:3]


def test_what_a_smaller_replay_has_no_room_for_leaves_the_disk(tmp_path: Path) -> None:
    """140 fragments lie in segments of 64, 64 and 12; the last 13 have room."""
    fill(tmp_path / "j", 140)
    smaller = make_replay(replace(CONFIG, capacity_steps=100))
    smaller.begin(None, tmp_path / "j")
    assert smaller._journal is not None
    smaller._journal.sync()
    assert smaller.stats().fragments == 13
    assert [path.name for path in segments.segment_paths(tmp_path / "j")] == [
        f"{64:020d}.segment",
        f"{128:020d}.segment",
    ]


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("kill", range(20))
def test_a_rewriting_that_is_killed_at_any_step_leaves_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: int
) -> None:
    """Killed before each call in turn that changes the disk."""
    folder = tmp_path / "j"
    stored = [payload for _, payload in content(fill(folder, 3))[0]]
    calls = itertools.count()

    def killing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if next(calls) >= kill:
                raise Killed
            return real(*given, **named)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(segments, "_boot", lambda: b"another boot ...")
        for name in ("writev", "write", "replace", "fdatasync", "unlink"):
            patched.setattr(journals.os, name, killing(getattr(os, name)))
        patched.setattr(journals.shutil, "rmtree", killing(shutil.rmtree))
        patched.setattr(Path, "mkdir", killing(Path.mkdir))
        replay = make_replay()
        try:
            replay.begin(None, folder)
        except Killed:
            killed(replay)
        else:
            assert next(calls) >= 10
    replay.stop()
    again = make_replay()
    again.begin(None, folder)
    assert [payload for _, payload in content(again)[0]] == stored
    assert read_journal(folder).whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["j", "j.lock"]


def test_a_rewritten_journal_is_on_the_disk_before_it_takes_the_name_and_the_old_one_goes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []

    def noting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            calls.append((name, *(path.name for path in given if isinstance(path, Path))))
            return real(*given, **named)

        return call

    folder = tmp_path / "j"
    folder.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(journals, "sync_folder", noting("sync", journals.sync_folder))
        patched.setattr(journals.os, "fdatasync", noting("sync", os.fdatasync))
        patched.setattr(journals.os, "replace", noting("rename", os.replace))
        patched.setattr(journals.shutil, "rmtree", noting("remove", shutil.rmtree))
        journal = journals.write_anew(folder, 1, 60.0, [Record(0, 0, 8, 1, b"fragment")], b"priorities")
    assert calls == [
        ("rename", "priorities.safetensors.tmp", "priorities.safetensors"),
        ("sync",),
        ("sync", "j.new"),
        ("sync", "j.new"),
        ("rename", "j", "j.old"),
        ("rename", "j.new", "j"),
        ("sync", tmp_path.name),
        ("remove", "j.old"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["j"]
    assert journal.append(Record(1, 2, 16, 2, b"next"))
    journal.close()
    assert [record.payload for record in read_journal(folder).records] == [b"fragment", b"next"]


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ("j", "j"),
        ("j j.new", "j"),  # killed while the new one was written
        ("j.new j.old", "j.new"),  # between the two renames
        ("j j.old", "j"),  # before the old one was gone
        ("j j.new j.old", "j"),
        ("j.old", "j.old"),
        ("j.new", None),  # it may not be complete
        ("", None),
    ],
)
def test_settle_leaves_one_journal_or_none(tmp_path: Path, there: str, taken: str | None) -> None:
    for name in there.split():
        (tmp_path / name).mkdir()
        (tmp_path / name / "of").write_text(name)
    journals.settle(tmp_path / "j")
    assert [path.name for path in tmp_path.iterdir()] == ([] if taken is None else ["j"])
    assert taken is None or (tmp_path / "j" / "of").read_text() == taken


def test_a_journal_that_the_disk_does_not_take_anew_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "j"
    stored = [payload for _, payload in content(fill(folder, 12))[0]]
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    open_files = psutil.Process().num_fds()
    monkeypatch.setattr(segments, "_boot", lambda: b"another boot ...")
    monkeypatch.setattr(journals.os, "writev", FullDisk(1000))
    after = make_replay()
    note = after.begin(None, folder)
    why = os.strerror(errno.ENOSPC)
    assert note.endswith(f"keeps no journal in {folder}: it could not be written anew: {why}")
    assert [payload for _, payload in content(after)[0]] == stored
    after.stop()
    assert psutil.Process().num_fds() == open_files
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["j", "j.lock"]


@pytest.mark.parametrize("room", [0, 1, 30, 44, 100, 1000, 3001])
def test_a_full_disk_stops_nothing_and_the_journal_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    disk = FullDisk(room)
    monkeypatch.setattr(journals.os, "writev", disk)
    monkeypatch.setattr(journals, "RETRY_S", 0.0)
    replay = make_replay()
    replay.begin(None, tmp_path / "j")
    for index, piece in enumerate(pieces(60)):
        assert replay.push(piece.payload)
        if index == 39:
            disk.room = 10**9
    journal = replay._journal
    assert journal is not None
    assert journal.missed > 0
    assert journal.error == ""
    contents = read_journal(tmp_path / "j")
    assert contents.damaged_bytes == 0
    assert contents.missing + len(contents.records) + contents.records[0].serial == 60
    assert {record.payload for record in contents.records} <= {piece.payload for piece in pieces(60)}
    assert [record.payload for record in contents.records[-20:]] == [piece.payload for piece in pieces(60)[40:]]
    killed(replay)
    after = make_replay()
    after.begin(None, tmp_path / "j")
    check_replay(after)
    assert read_journal(tmp_path / "j").whole


def test_the_thread_brings_a_snapshot_and_what_was_written_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fdatasync
    monkeypatch.setattr(journals, "SNAPSHOT_PERIOD_S", 0.02)
    monkeypatch.setattr(journals.os, "fdatasync", lambda file: (synced.append(file), real(file)))
    replay = fill(tmp_path / "j", 12, replace(CONFIG, journal_sync_s=0.01))
    replay.update_priorities(draw(replay, 8).ids, np.full(8, 7.0))
    deadline = time.monotonic() + 20
    while not synced or read_snapshot(tmp_path / "j" / journals.SNAPSHOT).weights.max(initial=0) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    replay.stop()
    found = read_snapshot(tmp_path / "j" / journals.SNAPSHOT)
    assert found.weights.tolist() == replay._sampler.weights().tolist()
    assert found.seen == {key: seen.edges for key, seen in replay._seen.items()}


def test_the_thread_survives_a_snapshot_that_fails_and_goes_on_evicting(tmp_path: Path) -> None:
    journal = journals.Journal(tmp_path / "j", 7, 0.01)
    tried: list[int] = []

    def snapshot() -> bytes:
        tried.append(1)
        raise MemoryError("no room")

    journal.keep(snapshot, 0.01)
    until(lambda: len(tried) > 2, "three snapshots to fail")
    for serial in range(1_000):
        journal.append(Record(serial, serial, serial + 1, min(serial + 1, 64), b"x"))
        journal.evict_before(serial - 62)
    until(lambda: len(list((tmp_path / "j").glob("*.segment"))) <= 3, "evicted segments to go")
    journal.close()


def test_a_long_period_leaves_few_files_open_and_evicted_ones_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "SEGMENTS_WAITING", 2)
    journal = journals.Journal(tmp_path / "j", 7, 3_600.0)
    journal.keep(lambda: b"", None)
    for serial in range(2_000):
        journal.append(Record(serial, serial, serial + 1, min(serial + 1, 64), b"x"))
        journal.evict_before(serial - 62)
    until(lambda: len(journal._retired) <= 2, "files to be closed")
    until(lambda: len(list((tmp_path / "j").glob("*.segment"))) <= 5, "evicted segments to go")
    journal.close()


def test_a_disk_that_is_full_only_when_it_is_synced_gets_room_and_is_complained_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(journals.os, "fdatasync", full)
    journal = journals.Journal(tmp_path / "j", 7, 3_600.0)
    for serial in range(1_000):
        journal.append(Record(serial, serial, serial + 1, min(serial + 1, 64), b"x"))
        journal.evict_before(serial - 62)
        if serial % 100 == 99:
            journal.save(b"")
    assert len(list((tmp_path / "j").glob("*.segment"))) <= 3
    assert len(caplog.records) == 1
    journal.close()


def test_what_comes_while_no_journal_can_be_kept_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    replay = make_replay()
    with monkeypatch.context() as patched:
        patched.setattr(replays, "recover", broken)
        assert "keeps no journal in " in replay.begin(None, tmp_path / "j")
    for piece in pieces(5):
        replay.push(piece.payload)
    assert replay.stats().journal_missed == 5
    without = make_replay()
    without.begin(None, None)
    without.push(pieces(1)[0].payload)
    assert without.stats().journal_missed == 0, "none was asked for"


def test_two_processes_do_not_write_one_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "OWNED_S", 0.1)
    first = make_replay()
    first.begin(None, tmp_path / "j")
    first.push(pieces(1)[0].payload)
    with pytest.raises(OSError, match="another process keeps this journal; end it, or wait for it"):
        make_replay().begin(None, tmp_path / "j")
    assert len(read_journal(tmp_path / "j").records) == 1
    first.stop()
    third = make_replay()
    third.begin(None, tmp_path / "j")
    assert third.stats().fragments == 1


def test_a_segment_without_records_does_not_take_the_next_one_with_it(tmp_path: Path) -> None:
    """Killed between a segment's head and its first record; the next record begins a segment of the same name."""
    config = replace(CONFIG, capacity_steps=490)
    fill(tmp_path / "j", 64, config)
    (segment,) = (tmp_path / "j").glob("*.segment")
    (tmp_path / "j" / f"{64:020d}.segment").write_bytes(segment.read_bytes()[: segments._SEGMENT.size])
    after = make_replay(config)
    after.begin(None, tmp_path / "j")
    for piece in pieces(200)[64:]:
        after.push(piece.payload)
    assert after._journal is not None
    after._journal.sync()
    contents = read_journal(tmp_path / "j")
    assert contents.whole
    assert [r.payload for r in contents.stored] == [payload for _, payload in content(after)[0]]
