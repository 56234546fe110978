"""A replay that was killed has back what its journal holds, under the same numbers or under such as never were."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drqn_dist.codec import encode
from drqn_dist.interfaces import Held
from replay_server import journal as journals
from replay_server import segments
from replay_server.rate_limiter import Balance
from replay_server.replay import Replay
from replay_server.segments import Record, read_journal
from replay_server.snapshot import read_snapshot
from tests.replay_server.fragments import cut_episode, make_fragment
from tests.replay_server.journaled import CONFIG, MADE, FullDisk, content, fill, killed, make_replay, pieces
from tests.replay_server.test_replay import SHAPE, draw
from tests.replay_server.validity import check_replay


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


def test_priorities_that_cannot_be_read_do_not_cost_the_fragments(tmp_path: Path) -> None:
    fill(tmp_path / "j", 12).stop()
    (tmp_path / "j" / journals.SNAPSHOT).unlink()
    (tmp_path / "j" / journals.SNAPSHOT).mkdir()
    after = make_replay()
    note = after.begin(None, tmp_path / "j")
    assert note.endswith("; its priorities could not be read (Is a directory)")
    assert after.stats().fragments == 12
    assert after.keeps_journal


def test_a_fragment_that_is_there_twice_comes_back_once(tmp_path: Path) -> None:
    """As two processes may leave it where files cannot be locked."""
    before = fill(tmp_path / "j", 12)
    before.stop()
    records = read_journal(tmp_path / "j").records
    again = journals.Journal(tmp_path / "again", 7, 60.0)
    for serial, record in enumerate([*records[:4], records[1], *records[4:]]):
        again.append(record._replace(serial=serial, first_window=100 + 4 * serial, live=serial + 1))
    again.close()
    after = make_replay(replace(CONFIG, capacity_steps=90))
    assert "1 fragments do not fit this configuration, or are there twice" in after.begin(None, tmp_path / "again")
    assert after.stats().fragments == 12
    for piece in pieces(40, actor=1):
        assert after.push(piece.payload)
    check_replay(after)


def test_a_smaller_replay_says_what_it_has_room_for(tmp_path: Path) -> None:
    """Of episodes of 8 + 8 + 8 + 6 steps 100 steps hold the last three, 12 fragments, and the 6 steps before them."""
    fill(tmp_path / "j", 60).stop()
    after = make_replay(replace(CONFIG, capacity_steps=100))
    assert after.begin(None, tmp_path / "j").startswith("took back 96 steps (13 fragments) from its journal in ")


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


@pytest.mark.parametrize(
    ("saved_after", "boot", "balance"),
    [
        (4, "same", Balance(filled_steps=30, debt=22, drawable=True)),  # all that ever filled it, though 14 are left
        (4, "another", Balance(filled_steps=14, debt=22, drawable=True)),
        (1, "same", Balance(filled_steps=14, debt=0, drawable=True)),  # 8 when it was saved, and 14 are stored
        (None, "same", Balance(filled_steps=14, debt=0, drawable=True)),
    ],
)
def test_literal_numbers_of_the_limiter_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved_after: int | None, boot: str, balance: Balance
) -> None:
    """Fragments of 8, 8, 8 and 6 steps come into room for 16, as above."""
    config = replace(CONFIG, capacity_steps=16)
    before = make_replay(config)
    before.begin(None, tmp_path / "j")
    states = {None: None}
    for count, piece in enumerate(pieces(4), start=1):
        before.push(piece.payload)
        states[count] = before.get_state()
    killed(before)
    if boot == "another":
        monkeypatch.setattr(segments, "_boot", lambda: b"another boot ...")
    after = make_replay(config)
    after.begin(states[saved_after], tmp_path / "j")
    assert after._limiter.balance() == balance
    assert after.stats().inserted_steps == 30
    assert after.can_sample()


def test_nothing_can_be_sampled_of_what_came_back_until_a_window_is_complete(tmp_path: Path) -> None:
    """Steps 8 to 15 alone: the window at 8 reads from step 5 on, the one at 12 up to step 16."""
    before = make_replay()
    before.begin(None, tmp_path / "j")
    before.push(pieces(2)[1].payload)
    killed(before)
    after = make_replay()
    after.begin(None, tmp_path / "j")
    assert after._limiter.balance() == Balance(filled_steps=8, debt=0, drawable=False)
    assert not after.can_sample()
    after.push(pieces(1)[0].payload)
    assert after.can_sample()
    assert after.stats().counted_steps == 0


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


def test_who_goes_back_keeps_the_numbers_and_loses_what_came_later(tmp_path: Path) -> None:
    """Four fragments of 30 steps when it was saved, four more after that; the first 8 steps do not count."""
    before = fill(tmp_path / "j", 4)
    state = before.save()
    for piece in pieces(8)[4:]:
        before.push(piece.payload)
    killed(before)
    after = make_replay()
    after.begin(state, tmp_path / "j", exact=True)
    assert [(s, after._store[s].first_window) for s in range(4)] == [(0, 0), (1, 2), (2, 4), (3, 6)]
    assert (after._store.next_serial, after._sampler.next_id) == (4, 8)
    assert after._limiter.balance() == Balance(filled_steps=30, debt=22, drawable=True)
    assert after._log != before._log  # under which the numbers from 4 on had been others' fragments
    assert [(r.serial, r.live) for r in read_journal(tmp_path / "j").records] == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_in_serial_mode_a_snapshot_is_written_with_a_checkpoint_alone(tmp_path: Path) -> None:
    replay = make_replay()
    replay.begin(None, tmp_path / "j", exact=True)
    replay.push(pieces(1)[0].payload)
    replay.stop()
    assert read_snapshot(tmp_path / "j" / journals.SNAPSHOT).stamp == (0, 0)  # of when it began


def test_who_begins_anew_takes_nothing_of_an_older_journal(tmp_path: Path) -> None:
    """A serial run that was killed before its first checkpoint pushes all once more."""
    before = make_replay()
    before.begin(None, tmp_path / "j", exact=True)
    for piece in pieces(8):
        before.push(piece.payload)
    before.save()
    killed(before)
    after = make_replay()
    assert after.begin(None, tmp_path / "j", exact=True) == ""
    assert after.stats().fragments == 0
    assert [after.push(piece.payload) for piece in pieces(8)] == [True] * 8


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
    assert note.endswith("40 fragments do not fit this configuration, or are there twice")
    assert other.stats().stored_steps == 0
    assert read_journal(tmp_path / "k").records == []


def test_a_journal_written_anew_holds_only_what_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 12 fragments with 24 windows the last two have room, 8 and 6 steps: all 12 get new numbers, from 12 on, and
    these two are the last of them."""
    fill(tmp_path / "j", 12)
    monkeypatch.setattr(segments, "_boot", lambda: b"another boot ...")
    make_replay(replace(CONFIG, capacity_steps=16)).begin(None, tmp_path / "j")
    first_window = 22 + 2**32  # the last fragment's was 22
    assert read_journal(tmp_path / "j").records == [
        Record(22, first_window + 20, inserted_steps=84, live=1, payload=pieces(12)[10].payload),
        Record(23, first_window + 22, inserted_steps=90, live=2, payload=pieces(12)[11].payload),
    ]


def test_after_two_restarts_of_the_machine_priorities_are_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fill(tmp_path / "j", 12)
    before.update_priorities(draw(before, 16).ids, np.full(16, 5.0))
    before.save()
    for boot in (b"another boot ...", b"yet another one."):
        monkeypatch.setattr(segments, "_boot", lambda boot=boot: boot)
        after = make_replay()
        after.begin(None, tmp_path / "j")
        killed(after)
        assert content(after)[2] == content(before)[2]


@pytest.mark.parametrize("limit", ["max_fragment_bytes", "capacity_bytes"])
def test_a_fragment_that_does_not_fit_any_more_is_left_out_and_the_others_get_new_numbers(
    tmp_path: Path, limit: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (9, 10_000)).astype(np.uint8)
    large = make_fragment(8, 2, (10_000,), observations=noise, actor_id=1)
    before = fill(tmp_path / "j", 4)
    before.push(encode(large))
    before.push(pieces(5)[4].payload)
    killed(before)
    after = make_replay(replace(CONFIG, **{limit: 50_000}))
    note = after.begin(before.get_state(), tmp_path / "j")
    assert note.endswith("; 1 fragments do not fit this configuration, or are there twice")
    assert [payload for _, payload in content(after)[0]] == [piece.payload for piece in pieces(5)]
    assert after._store.oldest_serial == 6
    assert [record.serial for record in read_journal(tmp_path / "j").records] == [6, 7, 8, 9, 10]


def test_a_file_that_cannot_be_read_is_kept_and_costs_the_journal(tmp_path: Path) -> None:
    before = fill(tmp_path / "j", 12)
    (tmp_path / "j" / f"{12:020d}.segment").mkdir()
    names = sorted(path.name for path in (tmp_path / "j").iterdir())
    after = make_replay()
    note = after.begin(before.get_state(), tmp_path / "j")
    assert note.endswith(f"; keeps no journal in {tmp_path / 'j'}: a file of it could not be read, and is kept")
    assert [payload for _, payload in content(after)[0]] == [piece.payload for piece in pieces(12)]
    assert after.push(pieces(1, actor=1)[0].payload)
    assert sorted(path.name for path in (tmp_path / "j").iterdir()) == names
    assert read_journal(tmp_path / "j").records[-1].serial == 11


def test_priorities_of_an_earlier_moment_serve_who_does_not_go_back(tmp_path: Path) -> None:
    before = fill(tmp_path / "j", 8)
    before.update_priorities(draw(before, 16).ids, np.full(16, 5.0))
    before.save()
    for piece in pieces(12)[8:]:
        before.push(piece.payload)
    killed(before)
    after = make_replay()
    after.begin(before.get_state(), tmp_path / "j")
    assert content(after) == content(before)


@pytest.mark.parametrize("exponent", [CONFIG.priority_exponent, 0.5])
def test_what_was_evicted_is_still_known_as_a_duplicate(tmp_path: Path, exponent: float) -> None:
    before = fill(tmp_path / "j", 4, replace(CONFIG, capacity_steps=16))
    before.save()
    after = make_replay(replace(CONFIG, capacity_steps=16, priority_exponent=exponent))
    after.begin(before.get_state(), tmp_path / "j")
    assert after._store.oldest_serial == 2
    assert [after.push(piece.payload) for piece in pieces(5)] == [False, False, False, False, True]


def test_another_boot_gives_new_numbers_because_the_disk_may_lack_what_was_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fill(tmp_path / "j", 12)
    before.update_priorities(draw(before, 16).ids, np.full(16, 5.0))
    before.save()
    monkeypatch.setattr(segments, "_boot", lambda: b"another boot ...")
    after = make_replay()
    after.begin(before.get_state(), tmp_path / "j")
    assert [payload for _, payload in content(after)[0]] == [payload for _, payload in content(before)[0]]
    assert content(after)[2] == content(before)[2]
    assert after._log != before._log
    assert content(after)[0][0][0] > content(before)[0][-1][0]
    assert content(after)[1][0][0] > before._sampler.next_id
    assert after.sample([], Held(before._log, 0, 12), 100, timeout_s=0.0).fresh.first == 12
    assert read_journal(tmp_path / "j").whole


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


def test_new_numbers_lie_above_all_that_journal_and_state_know(tmp_path: Path) -> None:
    """Of 12 fragments with 24 windows; while the disk took nothing, ids had come to 2^40."""
    state = fill(tmp_path / "j", 12).get_state()
    assert state["sampler"]["next_id"] == 24
    state["sampler"]["next_id"] = 2**40
    after = make_replay()
    after.begin(state, tmp_path / "j")
    assert after._store.oldest_serial == 12
    assert after._store[12].first_window == after._sampler.oldest_id == 2**40 + 2**32


@pytest.mark.parametrize("call", ["truncate", "unlink", "open"])
def test_files_that_cannot_be_changed_cost_the_journal_and_neither_content_nor_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = fill(tmp_path / "j", 12)
    newest = sorted((tmp_path / "j").glob("*.segment"))[-1]
    if call == "unlink":  # a segment without a record is removed first
        (tmp_path / "j" / f"{12:020d}.segment").write_bytes(newest.read_bytes()[: segments._SEGMENT.size])
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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("none", "took back 90 steps (12 fragments) from its journal in # s"),
        (
            "a record is gone",
            "took back 82 steps (11 fragments) from its journal in # s; 0 damaged bytes and 1 missing",
        ),
        ("junk before it", "took back 90 steps (12 fragments) from its journal in # s; 4 damaged bytes and 0 missing"),
        (
            "junk at the end",
            "took back 90 steps (12 fragments) from its journal in # s; 4 bytes at its end were still being written",
        ),
    ],
)
def test_what_came_back_is_said_with_its_numbers(tmp_path: Path, change: str, said: str) -> None:
    before = fill(tmp_path / "j", 12)
    (path,) = (tmp_path / "j").glob("*.segment")
    raw, payload = path.read_bytes(), pieces(12)[5].payload
    at, end = raw.index(payload) - 44, raw.index(payload) + len(payload)
    changed = {
        "none": raw,
        "a record is gone": raw[:at] + raw[end:],
        "junk before it": raw[:at] + b"junk" + raw[at:],
        "junk at the end": raw + b"junk",
    }
    path.write_bytes(changed[change])
    note = make_replay().begin(before.get_state(), tmp_path / "j")
    said += " fragments were left out" if "missing" in said else ""
    assert re.sub(r"in \d+\.\d s", "in # s", note) == said


def test_who_cannot_go_on_bit_for_bit_is_told(tmp_path: Path) -> None:
    before = fill(tmp_path / "j", 8)
    state = before.save()
    shutil.rmtree(tmp_path / "j")
    after = make_replay()
    note = after.begin(state, tmp_path / "j", exact=True)
    assert "the last 60 steps that had been inserted are not in it, so that this run will not be bit for bit" in note


def test_fragments_that_were_stored_at_a_checkpoint_and_are_gone_are_told(tmp_path: Path) -> None:
    before = fill(tmp_path / "j", 8)
    state = before.save()
    (path,) = (tmp_path / "j").glob("*.segment")
    raw, first = path.read_bytes(), pieces(8)[0].payload
    at, end = raw.index(first) - 44, raw.index(first) + len(first)
    path.write_bytes(raw[:at] + raw[end:])
    note = make_replay().begin(state, tmp_path / "j", exact=True)
    assert "1 fragments that were stored then are not in it, so that this run will not be bit for bit" in note


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
