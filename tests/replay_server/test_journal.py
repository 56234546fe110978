"""The journal: whatever happens to its files, what comes back was stored, in order, and is as much as can be."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drqn_dist.config import ReplayConfig
from drqn_dist.interfaces import Held
from replay_server import journal as journals
from replay_server.journal import Contents, Record, read_journal
from replay_server.replay import Replay
from replay_server.snapshot import read_snapshot
from tests.replay_server.fragments import Piece, cut_episode
from tests.replay_server.test_replay import SHAPE, draw
from tests.replay_server.validity import check_replay

CONFIG = ReplayConfig(capacity_steps=1000, min_steps=1, samples_per_insert=1.0, journal_sync_s=60.0)


CAPACITY_1045 = replace(CONFIG, capacity_steps=1_045)


MADE: list[Replay] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """No test leaves a file or a thread behind."""
    yield
    while MADE:
        MADE.pop().stop()


def make_replay(config: ReplayConfig = CONFIG, seed: int = 0) -> Replay:
    replay = Replay(config, SHAPE, 4, 10**9, seed)
    MADE.append(replay)
    return replay


def pieces(count: int, actor: int = 0) -> list[Piece]:
    """Fragments of episodes of 30 steps: three of 8 steps and one of 6 each."""
    made: list[Piece] = []
    for episode in range(-(-count // 4)):
        rng = np.random.default_rng([actor, episode])
        made += cut_episode(SHAPE, 30, rng, (actor, 0, episode), 4 * episode)
    return made[:count]


def content(replay: Replay) -> tuple[list[Any], ...]:
    """All that a replay holds, by number."""
    store, sampler = replay._store, replay._sampler
    fragments = [(serial, store[serial].payload) for serial in range(store.oldest_serial, store.next_serial)]
    windows = [(store[serial].first_window, store[serial].drawable) for serial, _ in fragments]
    weights = sampler.weights()[-sum(store[serial].num_windows for serial, _ in fragments) :]
    return fragments, windows, weights.tolist(), sorted((key, seen.edges) for key, seen in replay._seen.items())


def fill(folder: Path, count: int, config: ReplayConfig = CONFIG) -> Replay:
    replay = make_replay(config)
    replay.begin(None, folder)
    for piece in pieces(count):
        replay.push(piece.payload)
    return killed(replay)


def killed(replay: Replay) -> Replay:
    """What a replay was when its process ended: the system gave its lock back, and nothing else was done."""
    if replay._owner is not None:
        replay._owner.close()
    return replay


def test_a_replay_that_is_killed_has_everything_back_and_the_same_numbers(tmp_path: Path) -> None:
    before = fill(tmp_path / "j", 60)
    ids = draw(before, 16).ids
    before.update_priorities(ids, np.linspace(0.1, 9.0, 16))
    state = json.loads(json.dumps(before.save()))
    held = Held(before._log, 3, before._store.next_serial)
    # no stop, no close: the process is gone

    after = make_replay(seed=1)
    note = after.begin(state, tmp_path / "j")

    assert note.startswith("took back 450 steps (60 fragments) from its journal in ")
    assert content(after) == content(before)
    check_replay(after)
    assert after.stats() == before.stats()
    fresh = after.sample([], held, 100, timeout_s=0.0).fresh
    assert (fresh.log, fresh.fragments) == (before._log, ())
    assert after.push(pieces(60)[-1].payload) is False
    assert draw(after, 16).ids.tolist() == draw(before, 16).ids.tolist()  # the random stream and the tree too
    new = cut_episode(SHAPE, 8, np.random.default_rng(5), (7, 0, 0))[0].payload
    assert before.push(new)
    assert after.push(new)
    assert content(after) == content(before)


def test_literal_numbers_of_a_restart(tmp_path: Path) -> None:
    """Room for 16 steps: of four fragments of 8, 8, 8 and 6 steps the last two are stored (14 steps; 8 more would be
    22). Windows begin every 4 steps, so that fragments own 2 each: ids 0 to 7, of which 4 to 7 are left. The first 8
    steps came before anything could be drawn, so that 22 of 30 count."""
    config = replace(CONFIG, capacity_steps=16)
    before = fill(tmp_path / "j", 4, config)
    after = make_replay(config)
    after.begin(before.get_state(), tmp_path / "j")
    stats = after.stats()
    assert (stats.stored_steps, stats.fragments, stats.inserted_steps, stats.counted_steps) == (14, 2, 30, 22)
    assert [after._store[s].first_window for s in (2, 3)] == [4, 6]
    contents = read_journal(tmp_path / "j")
    assert [(r.serial, r.first_window, r.inserted_steps, r.live) for r in contents.records] == [
        (0, 0, 8, 1),
        (1, 2, 16, 2),
        (2, 4, 24, 2),
        (3, 6, 30, 2),
    ]
    assert contents.whole


def test_a_second_and_third_death_are_like_the_first(tmp_path: Path) -> None:
    expected = make_replay()
    expected.begin(None, tmp_path / "expected")
    state = None
    for part in range(4):
        replay = make_replay()
        replay.begin(state, tmp_path / "j")
        for piece in pieces(80)[part * 20 : (part + 1) * 20]:
            replay.push(piece.payload)
            expected.push(piece.payload)
        state = killed(replay).get_state()
    assert content(replay) == content(expected)
    assert replay._log != expected._log


def test_what_was_pushed_after_the_state_counts_as_inserted_and_earns_no_samples(tmp_path: Path) -> None:
    before = fill(tmp_path / "j", 8)
    state = before.get_state()
    for piece in pieces(16)[8:]:
        before.push(piece.payload)
    after = make_replay()
    after.begin(state, tmp_path / "j")
    assert after.stats().inserted_steps == before.stats().inserted_steps == 120
    assert after.stats().counted_steps == state["limiter"]["counted_steps"] < 60
    assert after._limiter.balance().debt == state["limiter"]["debt"]
    assert after.stats().stored_steps == 120


def test_who_goes_back_with_the_replay_has_it_as_it_was(tmp_path: Path) -> None:
    before = fill(tmp_path / "j", 8)
    state, then = before.save(), content(before)
    for piece in pieces(16)[8:]:
        before.push(piece.payload)
    after = make_replay()
    after.begin(state, tmp_path / "j", exact=True)
    _, windows, weights, seen = content(after)
    assert [p for _, p in content(after)[0]] == [p for _, p in then[0]]
    assert (len(windows), weights, seen) == (len(then[1]), then[2], then[3])
    assert after.stats().inserted_steps == 60
    assert all(after.push(piece.payload) for piece in pieces(16)[8:])


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


def test_a_smaller_replay_takes_the_newest_and_another_cut_takes_none(tmp_path: Path) -> None:
    before = fill(tmp_path / "j", 40)
    shutil.copytree(tmp_path / "j", tmp_path / "k")
    smaller = make_replay(replace(CONFIG, capacity_steps=100))
    smaller.begin(None, tmp_path / "j")
    kept = content(smaller)[0]
    assert kept == content(before)[0][-len(kept) :]
    assert 92 < smaller.stats().stored_steps <= 100
    check_replay(smaller)
    other = Replay(CONFIG, replace(SHAPE, stride=2), 4, 10**9, 0)
    MADE.append(other)
    note = other.begin(None, tmp_path / "k")
    assert note.endswith("40 fragments do not fit this configuration")
    assert other.stats().stored_steps == 0
    assert read_journal(tmp_path / "k").records == []


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
    head = journals._RECORD.pack(b"\xd5REC", 2**32 - 1, 0, 0, 0, 8, 1, 0)[:-4]
    path.write_bytes(path.read_bytes() + head + journals._CRC.pack(journals.zlib.crc32(head)))
    contents = read_journal(folder)
    assert (len(contents.records), contents.torn_bytes) == (1, 44)


def test_another_boot_gives_new_numbers_because_the_disk_may_lack_what_was_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fill(tmp_path / "j", 12)
    before.update_priorities(draw(before, 16).ids, np.full(16, 5.0))
    before.save()
    monkeypatch.setattr(journals, "_boot", lambda: b"another boot ...")
    after = make_replay()
    after.begin(before.get_state(), tmp_path / "j")
    assert [payload for _, payload in content(after)[0]] == [payload for _, payload in content(before)[0]]
    assert content(after)[2] == content(before)[2]
    assert after._log != before._log
    assert content(after)[0][0][0] > content(before)[0][-1][0]
    assert content(after)[1][0][0] > before._sampler.next_id
    assert after.sample([], Held(before._log, 0, 12), 100, timeout_s=0.0).fresh.first == 12
    assert read_journal(tmp_path / "j").whole


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
        patched.setattr(journals, "_boot", lambda: b"another boot ...")
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


class FullDisk:
    """Stands in for `os.writev`: takes so many more bytes, then none, then all again."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __call__(self, file: int, parts: list[bytes]) -> int:
        whole = b"".join(parts)
        part = whole[: self.room]
        if not part:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(part)
        return os.write(file, part)


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
    monkeypatch.setattr(journals, "_boot", lambda: b"another boot ...")
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


def test_numbers_are_never_used_twice_when_a_replay_dies_while_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 fragments are written, 10 more are stored and drawn but not written; then the process dies. A learner that
    keeps all 30 must not take the next fragments for those."""
    before = make_replay()
    before.begin(None, tmp_path / "j")
    for piece in pieces(20):
        before.push(piece.payload)
    early = before.sample([], Held(), 100, timeout_s=0.0).fresh
    monkeypatch.setattr(journals.os, "writev", FullDisk(0))
    for piece in pieces(30)[20:]:
        before.push(piece.payload)
    fresh = before.sample([], Held(early.log, 0, 20), 100, timeout_s=0.0).fresh
    assert (fresh.first, len(fresh.fragments)) == (0, 30)  # under another log, from the beginning
    killed(before)
    monkeypatch.undo()
    after = make_replay()
    after.begin(before.get_state(), tmp_path / "j")
    assert after.stats().fragments == 20
    for piece in pieces(40, actor=1):
        after.push(piece.payload)
    again = after.sample([], Held(fresh.log, 0, 30), 100, timeout_s=0.0).fresh
    assert (again.first, len(again.fragments)) == (20, 60)  # all of them, under numbers of another log
    assert again.log not in (early.log, fresh.log)
    assert after._sampler.oldest_id > before._sampler.next_id  # nor do late priorities hit strangers


@pytest.mark.parametrize("call", ["truncate", "unlink", "open"])
def test_files_that_cannot_be_changed_cost_the_journal_and_neither_content_nor_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = fill(tmp_path / "j", 12)
    newest = sorted((tmp_path / "j").glob("*.segment"))[-1]
    if call == "unlink":  # a segment without a record is removed first
        (tmp_path / "j" / f"{12:020d}.segment").write_bytes(newest.read_bytes()[: journals._SEGMENT.size])
    else:  # a torn tail is cut off first
        newest.write_bytes(newest.read_bytes() + b"torn")

    def refuse(*given: Any, **named: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patched:
        patched.setattr(journals.os, call, refuse)
        after = make_replay()
        note = after.begin(before.get_state(), tmp_path / "j")
        assert [payload for _, payload in content(after)[0]] == [payload for _, payload in content(before)[0]]
        assert after.stats().inserted_steps == before.stats().inserted_steps
        assert after.push(pieces(1, actor=1)[0].payload)
    if (
        call == "open"
    ):  # only the next segment cannot be begun: what is there is gone on with, and what is missed counts
        assert after._journal is not None
        assert after._journal.missed == 1
    else:
        assert "keeps no journal in" in note
        assert os.strerror(errno.EROFS) in note
        assert after._store.oldest_serial > before._store.next_serial - 1
    assert after._log != before._log


def test_a_snapshot_of_another_moment_is_not_taken_for_its_checkpoints(tmp_path: Path) -> None:
    before = fill(tmp_path / "j", 8)
    state = before.save()
    for piece in pieces(16)[8:]:
        before.push(piece.payload)
    before.save()  # and the checkpoint that belongs to it is not written any more
    after = make_replay()
    note = after.begin(state, tmp_path / "j", exact=True)
    assert "it has priorities of another moment, so that this run will not be bit for bit" in note
    assert [after.push(piece.payload) for piece in pieces(16)[8:]] == [True] * 8
    assert after.stats().inserted_steps == 120


def test_who_cannot_go_on_bit_for_bit_is_told(tmp_path: Path) -> None:
    before = fill(tmp_path / "j", 8)
    state = before.save()
    shutil.rmtree(tmp_path / "j")
    after = make_replay()
    note = after.begin(state, tmp_path / "j", exact=True)
    assert "the last 60 steps that had been inserted are not in it, so that this run will not be bit for bit" in note


def test_two_processes_do_not_write_one_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "OWNED_S", 0.1)
    first = make_replay()
    first.begin(None, tmp_path / "j")
    first.push(pieces(1)[0].payload)
    second = make_replay()
    note = second.begin(None, tmp_path / "j")
    assert note == f"keeps no journal in {tmp_path / 'j'}: another process keeps this journal; end it, or wait for it"
    for piece in pieces(8, actor=1):
        assert second.push(piece.payload)
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
    (tmp_path / "j" / f"{64:020d}.segment").write_bytes(segment.read_bytes()[: journals._SEGMENT.size])
    after = make_replay(config)
    after.begin(None, tmp_path / "j")
    for piece in pieces(200)[64:]:
        after.push(piece.payload)
    assert after._journal is not None
    after._journal.sync()
    contents = read_journal(tmp_path / "j")
    assert contents.whole
    assert [r.payload for r in contents.stored] == [payload for _, payload in content(after)[0]]


@pytest.mark.parametrize("numbers", [(2**63 - 1, 0, 8, 1), (0, 2**63 - 1, 8, 1), (0, 0, -1, 1), (-5, 0, 8, 1)])
def test_numbers_that_cannot_be_are_damage(tmp_path: Path, numbers: tuple[int, int, int, int]) -> None:
    folder = tmp_path / "j"
    fill(folder, 1)
    (record,) = read_journal(folder).records
    path = next(folder.glob("*.segment"))
    serial, first_window, inserted, live = numbers
    length, crc = len(record.payload), journals.zlib.crc32(record.payload)
    head = journals._RECORD.pack(b"\xd5REC", length, crc, serial, first_window, inserted, live, 0)[:-4]
    head += journals._CRC.pack(journals.zlib.crc32(head))
    path.write_bytes(path.read_bytes()[: journals._SEGMENT.size] + head + record.payload)
    replay = make_replay()
    replay.begin(None, folder)
    assert replay.stats().fragments == 0
    assert replay.push(pieces(1)[0].payload)


def test_after_damage_nothing_comes_back_that_was_evicted(tmp_path: Path) -> None:
    config = replace(CONFIG, capacity_steps=300)
    before = fill(tmp_path / "j", 60, config)
    (path,) = (tmp_path / "j").glob("*.segment")
    records = read_journal(tmp_path / "j").records
    raw = bytearray(path.read_bytes())
    for record in records[-10:-5]:
        raw[raw.index(record.payload) + 20] ^= 1
    path.write_bytes(bytes(raw))
    after = make_replay(config)
    after.begin(None, tmp_path / "j")
    held = [payload for _, payload in content(before)[0]]
    assert [payload for _, payload in content(after)[0]] == [*held[:-10], *held[-5:]]


def test_weights_on_another_scale_are_left_out(tmp_path: Path) -> None:
    before = fill(tmp_path / "j", 8, replace(CONFIG, priority_exponent=1.0))
    before.update_priorities(draw(before, 16).ids, np.full(16, 9.0))
    before.save()
    after = make_replay(replace(CONFIG, priority_exponent=0.5))
    after.begin(None, tmp_path / "j")
    fresh = make_replay(replace(CONFIG, priority_exponent=0.5))
    for piece in pieces(8):
        fresh.push(piece.payload)
    assert content(after)[2] == content(fresh)[2]
