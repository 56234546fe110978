"""What a run's replay holds, told by its journal in literal numbers."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from drqn_dist.cli import main
from drqn_dist.codec import encode
from drqn_dist.errors import RunFolderError
from drqn_dist.experiments import replay_read
from drqn_dist.experiments.replay_inspect import inspect_replay, table
from replay_server import journal as journals
from replay_server import segments
from replay_server.make import make_replay
from tests.experiments.journals import fragments, make_run, stream, write


def test_literal_numbers_of_one_journal(tmp_path: Path) -> None:
    """Two episodes of 30 steps (4 fragments each, a reward of 1 a step), one of 10, truncated, and one that has begun:
    8 + 2 + 1 = 11 fragments of 30 + 30 + 10 + 8 = 78 steps. Windows begin every 8 steps: one a fragment."""
    run = make_run(tmp_path)
    pieces = stream(run, 2, weight_version=3)
    pieces += fragments(run, 10, 0, 0, "truncated", actor_id=1, weight_version=5)
    pieces += fragments(run, 8, 1, 2, "", actor_id=1, weight_version=7)
    folder = write(run, pieces)
    inspected = inspect_replay(run.path)
    (shard,) = inspected["shards"]
    expected = {
        "shard": "0",
        "segments": 1,
        "fragments": 11,
        "steps": 78,
        "evicted_fragments": 0,
        "evicted_steps": 0,
        "episodes": {"complete": 3, "begun": 1, "without_beginning": 0},
        "complete_steps": 70,
        "mean_return": 70 / 3,
        "actors": 2,
        "environments": 2,
        "weight_versions": [3, 7],
        "observations": ["uint8 [1, 4, 6]"],
        "windows": 11,
        "windows_with_priority": 11,
        "snapshot_damaged": False,
        "torn_bytes": 0,
        "damaged_bytes": 0,
        "missing_fragments": 0,
        "unreadable_fragments": 0,
        "restart": "in place",
        "restart_because": [],
    }
    assert {name: shard[name] for name in expected} == expected
    assert shard["disk_bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    # The one segment is its head, and 44 bytes before each payload.
    segment = next(folder.glob("*.segment")).stat().st_size
    assert shard["stored_bytes"] == segment - 36 - 11 * 44
    assert shard["bytes_per_step"] == shard["stored_bytes"] / 78
    assert 0 <= shard["snapshot_age_s"] < 120
    assert inspected["together"] == {name: value for name, value in shard.items() if name != "shard"}
    lines = table(inspected).splitlines()
    assert lines[-1] == "a restart would go on in place"
    shown = {line[:40].strip(): line[40:].strip() for line in lines[1:-1]}
    assert shown["fragments stored + evicted but on disk"] == "11 + 0"
    assert shown["their mean return"] == "23.3"
    assert shown["weight versions"] == "3 to 7"


def test_what_was_evicted_counts_apart_and_takes_its_episode_along(tmp_path: Path) -> None:
    """Room for 24 steps: of two episodes of 30 (8, 8, 8, 6) the last fragments of 8, 8 and 6 steps are stored."""
    run = make_run(tmp_path, replay={"capacity_steps": 24})
    write(run, stream(run, 2))
    told = inspect_replay(run.path)["together"]
    assert (told["fragments"], told["steps"]) == (3, 22)
    assert (told["evicted_fragments"], told["evicted_steps"]) == (5, 38)
    assert told["episodes"] == {"complete": 0, "begun": 0, "without_beginning": 1}
    assert told["mean_return"] is None
    assert told["windows_with_priority"] == 3


def test_shards_are_told_one_by_one_and_together(tmp_path: Path) -> None:
    run = make_run(tmp_path, replay={"shards": 2}, actors=2)
    write(run, stream(run, 1, weight_version=1), 0)
    write(run, stream(run, 2, actor_id=1, weight_version=2), 1)
    inspected = inspect_replay(run.path)
    assert [shard["steps"] for shard in inspected["shards"]] == [30, 60]
    together = inspected["together"]
    assert (together["steps"], together["episodes"]["complete"], together["actors"]) == (90, 3, 2)
    assert (together["mean_return"], together["weight_versions"]) == (30.0, [1, 2])
    assert together["restart"] == "in place"
    assert table(inspected).splitlines()[0].split() == ["shard", "0", "shard", "1", "together"]


def test_more_journals_than_shards_would_not_be_taken_back(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for shard in (0, 1):
        write(run, stream(run, 1, actor_id=shard), shard)
    told = inspect_replay(run.path)["together"]
    assert told["restart"] == "not at all"
    assert told["restart_because"] == ["the run has 1 shards now, but 2 journals"]


def test_a_torn_tail_is_said_and_costs_only_its_record(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    path = next(write(run, stream(run, 2)).glob("*.segment"))
    os.truncate(path, path.stat().st_size - 3)
    told = inspect_replay(run.path)["together"]
    assert told["fragments"] == 7
    assert told["torn_bytes"] > 44
    assert (told["damaged_bytes"], told["restart"]) == (0, "in place")


def test_damage_is_said_with_what_it_means_for_a_restart(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    path = next(write(run, stream(run, 2)).glob("*.segment"))
    raw = bytearray(path.read_bytes())
    raw[36 + 44 + 100] ^= 1  # within the first payload
    path.write_bytes(raw)
    told = inspect_replay(run.path)["together"]
    assert told["damaged_bytes"] > 100
    assert table(inspect_replay(run.path)).splitlines()[-1] == "a restart would go on anew (bytes are damaged)"
    assert (told["restart"], told["restart_because"]) == ("anew", ["bytes are damaged"])
    assert told["episodes"] == {"complete": 1, "begun": 0, "without_beginning": 1}


def test_shards_that_would_go_on_differently_are_told_apart(tmp_path: Path) -> None:
    run = make_run(tmp_path, replay={"shards": 2}, actors=2)
    write(run, stream(run, 1), 0)
    path = next(write(run, stream(run, 2, actor_id=1), 1).glob("*.segment"))
    raw = bytearray(path.read_bytes())
    raw[36 + 44 + 100] ^= 1
    path.write_bytes(raw)
    inspected = inspect_replay(run.path)
    assert inspected["together"]["restart"] == "differs by shard"
    assert table(inspected).splitlines()[-2:] == [
        "shard 0: a restart would go on in place",
        "shard 1: a restart would go on anew (bytes are damaged)",
    ]


def test_many_shards_are_one_column(tmp_path: Path) -> None:
    run = make_run(tmp_path, replay={"shards": 7}, actors=7)
    for shard in range(7):
        write(run, stream(run, 1, actor_id=shard), shard)
    lines = table(inspect_replay(run.path)).splitlines()
    assert lines[0].split() == ["together"]
    assert lines[-1] == "7 shards; --json tells each"


@pytest.mark.parametrize(
    ("changes", "restart", "why"),
    [
        ({"mode": "serial"}, "in place, or anew without what is newer than the checkpoint", []),
        ({"replay": {"journal": False}}, "not at all", ["replay.journal is false now"]),
        ({"actor": {"fragment_steps": 16}}, "anew", ["fragments do not fit this run's configuration", "no fragment"]),
    ],
)
def test_how_a_restart_would_go_on_hangs_on_the_configuration_of_now(
    tmp_path: Path, changes: dict[str, Any], restart: str, why: list[str]
) -> None:
    folder = write(make_run(tmp_path / "then"), stream(make_run(tmp_path / "x"), 2))
    run = make_run(tmp_path / "now", **changes)
    (run.path / "replay").mkdir()
    os.rename(folder, run.path / "replay" / "0")
    told = inspect_replay(run.path)["together"]
    assert told["restart"] == restart
    assert len(told["restart_because"]) == len(why)
    assert all(any(part in said for said in told["restart_because"]) for part in why)


def test_another_boot_means_new_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    write(run, stream(run, 1))
    monkeypatch.setattr(segments, "_boot", lambda: b"another boot ...")
    told = inspect_replay(run.path)["together"]
    assert told["restart_because"] == ["the machine was started again since, or it is another one"]


def test_a_damaged_snapshot_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    folder = write(run, stream(run, 1))
    (folder / journals.SNAPSHOT).write_bytes(b"nonsense")
    inspected = inspect_replay(run.path)
    assert (inspected["together"]["snapshot_damaged"], inspected["together"]["windows_with_priority"]) == (True, 0)
    assert "damaged" in next(line for line in table(inspected).splitlines() if line.startswith("priorities"))


def test_a_run_that_writes_meanwhile_is_read_at_any_moment(tmp_path: Path) -> None:
    run = make_run(tmp_path, replay={"capacity_steps": 2_000})
    replay = make_replay(run.config)
    replay.begin(None, run.path / "replay" / "0")
    payloads = [encode(piece) for piece in stream(run, 400)]
    replay.push(payloads[0])
    writer = threading.Thread(target=lambda: [replay.push(payload) for payload in payloads[1:]])
    writer.start()
    looks = 0
    while writer.is_alive() or not looks:
        told = inspect_replay(run.path)["together"]
        assert (told["damaged_bytes"], told["missing_fragments"], told["unreadable_fragments"]) == (0, 0, 0)
        assert told["steps"] <= 2_000
        looks += 1
    writer.join()
    assert inspect_replay(run.path)["together"]["steps"] == replay.stats().stored_steps
    replay.stop()


def test_segments_that_vanish_while_they_are_opened_are_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)
    folder = write(run, stream(run, 1))
    gone = folder / "00000000000000000099.segment"
    gone.touch()

    class Vanishing(replay_read.SegmentFile):
        def __init__(self, path: Path) -> None:
            gone.unlink(missing_ok=True)
            super().__init__(path)

    monkeypatch.setattr(replay_read, "SegmentFile", Vanishing)
    assert inspect_replay(run.path)["together"]["fragments"] == 4


@pytest.mark.parametrize("killed", ["new alone beside the old one", "the old one alone", "before the first rename"])
def test_a_rewriting_that_was_killed_is_read_as_the_next_start_will(tmp_path: Path, killed: str) -> None:
    run = make_run(tmp_path)
    folder = write(run, stream(run, 2))
    new, old = folder.with_name("0.new"), folder.with_name("0.old")
    if killed == "before the first rename":
        new.mkdir()
    else:
        os.rename(folder, old)
        if killed == "new alone beside the old one":
            os.rename(write(make_run(tmp_path / "other"), stream(run, 1)), new)
    before = inspect_replay(run.path)["together"]["fragments"]
    journals.settle(folder)
    assert before == inspect_replay(run.path)["together"]["fragments"] == (4 if "new" in killed else 8)


def test_any_find_is_that_of_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_read, "_FIND_BYTES", 7)
    raw = b"..abcd....abc.abcdabcd"
    (tmp_path / "f").write_bytes(raw)
    file = replay_read.SegmentFile(tmp_path / "f")
    for start in range(len(raw) + 2):
        assert file.find(b"abcd", start) == raw.find(b"abcd", start)
        assert file[start : start + 5] == raw[start : start + 5]
    file.close()


@pytest.mark.parametrize("journal", [True, False])
def test_a_run_without_a_journal_says_so(tmp_path: Path, journal: bool) -> None:
    run = make_run(tmp_path, replay={"journal": journal})
    why = "stored nothing yet" if journal else r"begun without one \(replay.journal false\)"
    with pytest.raises(RunFolderError, match=rf"has no replay journal: .*{why}"):
        inspect_replay(run.path)


def test_what_is_no_file_is_one_clear_error(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (write(run, stream(run, 1)) / "00000000000000000099.segment").mkdir()
    with pytest.raises(RunFolderError, match=r"cannot read 0/0+99\.segment of the journal: Is a directory"):
        inspect_replay(run.path)


def test_the_command_prints_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    write(run, stream(run, 1))
    main(["replay", "inspect", str(run.path)])
    assert "episodes complete" in capsys.readouterr().out
    main(["replay", "inspect", str(run.path), "--json"])
    assert json.loads(capsys.readouterr().out)["together"]["steps"] == 30
