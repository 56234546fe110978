"""The targets of the fuzzer hold for its seeds, and their oracles can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from drqn_dist import codec
from drqn_dist.checkpoint import _parsed
from drqn_dist.experiments.run_folder import open_run
from drqn_dist.training.facts import check_facts
from replay_server import segments
from replay_server.snapshot import load_snapshot
from tests.fuzz.readers import LIMIT, READERS, seeds


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_takes_its_seeds_and_parts_of_them(reader: str) -> None:
    for seed in seeds(reader):
        for end in range(0, len(seed) + 1, 7):
            READERS[reader](seed[:end])
        READERS[reader](seed)


def test_seeds_are_whole(tmp_path: Path) -> None:
    assert codec.decode(seeds("fragment")[0][1:], LIMIT).num_steps == 4
    contents = segments.Contents()
    assert len(list(segments.read_segment("s", seeds("journal")[0][1:], True, contents))) == 3
    assert not contents.damage
    check_facts(_parsed(seeds("checkpoint")[0], tmp_path)[1], tmp_path)
    (tmp_path / "priorities").write_bytes(seeds("snapshot")[0])
    assert load_snapshot(tmp_path / "priorities").first_window == 5
    (tmp_path / "config.json").write_bytes(seeds("config")[0])
    assert open_run(tmp_path).config.seed == 0


def test_a_record_that_is_served_twice_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    read = segments.read_segment
    monkeypatch.setattr(segments, "read_segment", lambda *arguments: [*read(*arguments)] * 2)
    with pytest.raises(AssertionError):
        READERS["journal"](seeds("journal")[0])
