"""A whole journal passes; every kind of damage is named with its file and record."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from drqn_dist.cli import main
from drqn_dist.codec import encode
from drqn_dist.experiments import replay_command
from drqn_dist.experiments.replay_verify import Verdict, verify_replay
from drqn_dist.experiments.run_folder import RunFolder
from drqn_dist.fragment import Fragment
from replay_server import journal as journals
from replay_server.journal import Journal
from replay_server.segments import Record, read_journal
from replay_server.snapshot import Snapshot
from tests.experiments.journals import IN_FLIGHT, fragments, make_run, stream, write


def verified(run: RunFolder) -> tuple[Verdict, list[str]]:
    lines: list[str] = []
    verdict = verify_replay(run.path, lines.append)
    assert verdict.faults == sum(line.startswith("fault: ") for line in lines)
    return verdict, lines


def only_fault(run: RunFolder) -> str:
    _, lines = verified(run)
    (fault,) = [line for line in lines if line.startswith("fault: ")]
    return fault


def rewrite(run: RunFolder, change: Callable[[list[Record]], list[Record]]) -> None:
    """Writes the journal's records anew, changed, as a program with a fault might have; without a snapshot."""
    folder = run.path / "replay" / "0"
    records = change(read_journal(folder).records)
    for path in folder.iterdir():
        path.unlink()
    journal = Journal(folder, 1, 60.0)
    for record in records:
        journal.append(record)
    journal.close()


def with_fragment(records: list[Record], index: int, fragment: Fragment) -> list[Record]:
    return [*records[:index], records[index]._replace(payload=encode(fragment)), *records[index + 1 :]]


def test_a_whole_journal_has_no_faults(tmp_path: Path) -> None:
    """Two environments of three episodes of 30 steps in 4 fragments each, in two shards."""
    run = make_run(tmp_path, replay={"shards": 2}, actors=2)
    for shard in (0, 1):
        write(run, stream(run, 3, actor_id=shard), shard)
    assert verified(run) == (Verdict(0, 24, 180), [])


def test_what_was_evicted_out_of_its_order_is_no_fault(tmp_path: Path) -> None:
    """Fragments arrive as 0, 2, 1, 4, 3 …, so that of a segment that begins with the serial number 64 k the fragment
    64 k lies in the one before."""
    run = make_run(tmp_path, replay={"capacity_steps": 100})
    pieces = stream(run, 100)[:399]
    pieces[1::2], pieces[2::2] = pieces[2::2], pieces[1::2]
    write(run, pieces)
    verdict, lines = verified(run)
    assert (verdict.faults, verdict.fragments) == (0, 399 - 384)
    assert len(lines) == 1
    assert "1 fragments that later ones overtook are not there: evicted" in lines[0]


def test_a_torn_tail_is_no_fault_but_said(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    path = next(write(run, stream(run, 3), snapshot=False).glob("*.segment"))
    (path.parent / journals.SNAPSHOT).unlink()
    os.truncate(path, path.stat().st_size - 1)
    verdict, lines = verified(run)
    assert (verdict.faults, verdict.fragments) == (0, 11)
    assert len(lines) == 1
    assert lines[0].startswith(f"note: 0/{path.name}: ")
    assert "were being written" in lines[0]


@pytest.mark.parametrize("segment", [0, 1])
def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path, segment: int) -> None:
    """In two segments of 64 and 36 fragments: within heads and payloads."""
    run = make_run(tmp_path)
    folder = write(run, stream(run, 25))
    path = sorted(folder.glob("*.segment"))[segment]
    raw = path.read_bytes()
    rng = np.random.default_rng(segment)
    newest = raw.rfind(b"\xd5REC")  # damage of the last record cannot be told from a torn tail
    for at in [0, 9, 36, 40, *rng.integers(0, newest if segment else len(raw), 20).tolist()]:
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :])
        verdict, lines = verified(run)
        assert verdict.faults > 0, at
        assert any(f"0/{path.name}" in line or line.startswith("fault: 0: its segments") for line in lines), lines
    path.write_bytes(raw)
    assert verified(run)[0].faults == 0


def test_damage_is_told_with_its_bytes_and_the_fragments_that_it_cost(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    path = next(write(run, stream(run, 3)).glob("*.segment"))
    record = read_journal(path.parent).records[0]
    size = 44 + len(record.payload)
    raw = bytearray(path.read_bytes())
    second = raw.find(b"\xd5REC", 36 + size)
    raw[second + 60] ^= 1
    path.write_bytes(raw)
    verdict, lines = verified(run)
    third = raw.find(b"\xd5REC", second + 1)
    assert lines[0] == (
        f"fault: 0/{path.name}: {third - second:,} bytes from byte {second:,} on are damaged, and with them the "
        "fragments of serial numbers 1 to 1"
    )
    assert verdict == Verdict(1, 11, 82)


def test_a_segment_that_is_gone_is_missed_in_the_middle_and_at_the_beginning(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    folder = write(run, stream(run, 50))
    paths = sorted(folder.glob("*.segment"))
    middle = paths[1].read_bytes()
    paths[1].unlink()
    assert "record 0 (byte 36): the fragments of serial numbers 64 to 127 are missing" in only_fault(run)
    paths[1].write_bytes(middle)
    paths[0].unlink()
    assert only_fault(run) == "fault: 0: the oldest 64 of 200 stored fragments are not on the disk"


def test_damage_before_a_segment_that_is_gone_does_not_hide_it(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    folder = write(run, stream(run, 50))
    first, second, *_ = sorted(folder.glob("*.segment"))
    second.unlink()
    raw = bytearray(first.read_bytes())
    raw[-1] ^= 1
    first.write_bytes(raw)
    _, lines = verified(run)
    faults = [line for line in lines if line.startswith("fault: ")]
    assert "the fragments of serial numbers 63 to 127 are missing" in faults[0]
    assert f"0/{first.name}: " in faults[1]
    assert "are damaged" in faults[1]


def test_segments_of_two_logs_are_a_fault(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    folder = write(run, stream(run, 3))
    records = read_journal(folder).records
    rewrite(run, lambda records: records[:6])
    other = Journal(folder, 2, 60.0)
    for record in records[6:]:
        other.append(record)
    other.close()
    assert only_fault(run) == "fault: 0: its segments are of several logs, or one's head is damaged"


def test_a_joint_whose_observations_differ_is_a_fault(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    pieces = stream(run, 1)
    observations = pieces[2].observations.copy()
    observations[0, 0, 1, 1] ^= 1
    write(run, pieces)
    rewrite(run, lambda records: with_fragment(records, 2, replace(pieces[2], observations=observations)))
    fault = only_fault(run)
    assert "record 2 (byte " in fault
    assert "fragment 2 of actor 0, environment 0 does not follow 1 (0/" in fault
    assert fault.endswith("its first observation is not the last one there")


@pytest.mark.parametrize(
    ("index", "changes", "wrong"),
    [
        (4, {"episode_id": 0}, ["episode 0 after 0", "it is part 1 of episode 1, that one part 0 of episode 0"]),
        (2, {"first_step": 0}, ["episode 0 after 0", "it is part 3 of episode 0, that one part 0 of episode 0"]),
        (1, {"terminated": True}, ["episode 0 has ended there"]),
        (
            2,
            {"sequence_no": 1},
            ["fragment 1 of actor 0, environment 0 is there twice, first in 0/", "fragment 2 of actor 0"],
        ),
    ],
)
def test_fragments_that_contradict_each_other_are_faults(
    tmp_path: Path, index: int, changes: dict[str, int], wrong: list[str]
) -> None:
    run = make_run(tmp_path)
    pieces = stream(run, 2)
    write(run, pieces)
    rewrite(run, lambda records: with_fragment(records, index, replace(pieces[index], **changes)))  # type: ignore[arg-type]
    faults = [line for line in verified(run)[1] if line.startswith("fault: ")]
    assert len(faults) == len(wrong)
    assert all(part in fault for part, fault in zip(wrong, faults, strict=True)), faults


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"first_window": 9}, "its first window is 9, but must be 2"),
        ({"first_window": 1}, "its first window is 1, but must be 2"),
        ({"inserted_steps": 23}, "23 steps were inserted with its 8, 16 before it"),
        ({"live": 4}, "4 fragments are stored with it, but 2 were before it"),
    ],
)
def test_counters_must_rise_with_the_fragments(tmp_path: Path, change: dict[str, int], wrong: str) -> None:
    run = make_run(tmp_path)
    write(run, stream(run, 1))
    rewrite(run, lambda records: [*records[:2], records[2]._replace(**change), *records[3:]])
    _, lines = verified(run)
    assert wrong in lines[0]
    assert "record 2 " in lines[0]


def test_an_undecodable_fragment_is_a_fault_and_no_other_one_follows_from_it(tmp_path: Path) -> None:
    """Its checksum is right, so that only decoding it tells."""
    run = make_run(tmp_path)
    pieces = stream(run, 3)
    write(run, pieces)
    bad = replace(pieces[5], rewards=np.full(8, 1, np.float32))
    broken = encode(bad).replace(np.ones(8, np.float32).tobytes(), np.full(8, np.nan, np.float32).tobytes())
    covered = broken[10:]
    broken = broken[:6] + zlib.crc32(covered).to_bytes(4, "little") + covered
    rewrite(run, lambda records: [*records[:5], records[5]._replace(payload=broken), *records[6:]])
    assert "reward at episode step 8 of environment 0 is not finite" in only_fault(run)


def test_observations_of_another_shape_are_a_fault(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    pieces = stream(run, 1) + fragments(run, 8, 0, 0, actor_id=1, dtype="float32")
    write(run, pieces)
    assert "its observations are float32 [1, 4, 6], but uint8 [1, 4, 6] in those before" in only_fault(run)


@pytest.mark.parametrize("lost", range(12))
def test_a_fragment_that_never_came_is_a_fault_unless_its_actor_may_have_died_with_it(
    tmp_path: Path, lost: int
) -> None:
    """Of 12; an actor has at most 2 on their way, so that of those before the last one (11) only 9 and 10 may lack."""
    assert IN_FLIGHT == 2
    run = make_run(tmp_path)
    pieces = stream(run, 3)
    write(run, pieces[:lost] + pieces[lost + 1 :])
    verdict, lines = verified(run)
    if lost in (9, 10):
        assert (verdict.faults, len(lines)) == (0, 1)
        assert "1 fragments that later ones overtook are not there" in lines[0]
    elif lost in (0, 11):  # nothing tells that it was ever there
        assert verdict.faults == 0
    else:
        assert f"fragment {lost} of actor 0, environment 0 before it never came" in only_fault(run)


def test_a_gap_of_billions_is_counted_at_once(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    pieces = stream(run, 2)
    write(run, pieces[:4] + [replace(piece, sequence_no=piece.sequence_no + 2**31 - 9) for piece in pieces[4:]])
    assert "fragment 4 to 2147483642 of actor 0, environment 0 before it never came" in only_fault(run)


def test_a_restarted_actor_begins_anew(tmp_path: Path) -> None:
    """Its numbers begin at 2 ** 32, where a gap is none."""
    run = make_run(tmp_path)
    second = [replace(p, sequence_no=p.sequence_no + 2**32, episode_id=p.episode_id + 2**32) for p in stream(run, 2)]
    write(run, stream(run, 2) + second)
    assert verified(run) == (Verdict(0, 16, 120), [])


@pytest.mark.parametrize(
    ("snapshot", "wrong"),
    [
        (
            Snapshot(0, weights=np.ones(13), seen={(0, 0): [0, 12]}),
            "it knows windows up to 12, but the journal's last one is 11",
        ),
        (
            Snapshot(0, weights=np.ones(12), seen={(0, 0): [0, 11]}),
            "it has not seen fragment 11 of actor 0, environment 0 (0/",
        ),
        (None, "the snapshot is damaged: "),
    ],
)
def test_a_snapshot_that_does_not_fit_is_a_fault(tmp_path: Path, snapshot: Snapshot | None, wrong: str) -> None:
    run = make_run(tmp_path)
    folder = write(run, stream(run, 3))
    (folder / journals.SNAPSHOT).write_bytes(b"nonsense" if snapshot is None else snapshot.to_bytes())
    assert f"fault: 0/priorities: {wrong}" in only_fault(run)


def test_a_snapshot_begins_where_a_fragment_does(tmp_path: Path) -> None:
    """Two windows a fragment, at a stride of 4."""
    run = make_run(tmp_path, replay={"window_stride_steps": 4})
    folder = write(run, stream(run, 2))
    for first, faults in ((2, 0), (3, 1)):
        (folder / journals.SNAPSHOT).write_bytes(Snapshot(first, weights=np.ones(5), seen={(0, 0): [0, 8]}).to_bytes())
        assert verified(run)[0].faults == faults


def test_an_older_snapshot_is_none(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    folder = write(run, stream(run, 3))
    (folder / journals.SNAPSHOT).write_bytes(Snapshot(0, weights=np.ones(5), seen={(0, 0): [0, 5]}).to_bytes())
    assert verified(run) == (Verdict(0, 12, 90), [])


def test_a_snapshot_of_an_earlier_version_is_no_fault(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    folder = write(run, stream(run, 3))
    old = (
        Snapshot(0, weights=np.ones(12), seen={(0, 0): [0, 12]}).to_bytes().replace(b"-priorities-3", b"-priorities-2")
    )
    (folder / journals.SNAPSHOT).write_bytes(old)
    verdict, (note,) = verified(run)
    assert verdict == Verdict(0, 12, 90)
    assert note.startswith("note: 0/priorities are left out by a restart: it is of format 'drqn-dist-priorities-2'")


def test_the_command_says_whole_or_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    path = next(write(run, stream(run, 2)).glob("*.segment"))
    main(["replay", "verify", str(run.path)])
    assert capsys.readouterr().out == "whole: 8 fragments with 60 steps\n"
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)
    with pytest.raises(SystemExit) as stopped:
        main(["replay", "verify", str(run.path)])
    assert stopped.value.code == 1
    captured = capsys.readouterr()
    assert captured.out.startswith(f"fault: 0/{path.name}")
    assert "drqn-dist: error: 2 faults in the replay journal of " in captured.err


def test_a_long_one_says_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    write(run, stream(run, 2))
    monkeypatch.setattr(replay_command, "PROGRESS_PERIOD_S", 0.0)
    main(["replay", "verify", str(run.path)])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 8
    assert said[-1] == "read 0 of 0 MB"
