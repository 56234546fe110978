from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from drqn_dist.presets import preset
from drqn_dist.training.session import drop_other_shards, journal_folders, next_incarnation


def test_incarnations_are_never_given_out_twice(tmp_path: Path) -> None:
    assert [next_incarnation(tmp_path, 0) for _ in range(3)] == [0, 1, 2]
    assert next_incarnation(tmp_path, 7) == 7
    assert next_incarnation(tmp_path, 3) == 8
    (tmp_path / "incarnation").write_bytes(b"\xff\xff")
    assert next_incarnation(tmp_path, 3) > 8, "8 or so were given out, and the file does not say it any more"


def test_journals_of_other_shards_are_kept_until_the_new_ones_have_begun(tmp_path: Path) -> None:
    one = replace(preset("gridworld"), mode="ray", actors=2)
    two = replace(one, replay=replace(one.replay, shards=2))
    (folder,) = journal_folders(one, tmp_path)
    assert folder is not None
    folder.mkdir()
    (folder / "a.segment").touch()
    journal_folders(two, tmp_path)
    assert not (folder / "a.segment").exists()
    journal_folders(one, tmp_path)
    assert (folder / "a.segment").exists(), "the change had not begun"
    journal_folders(two, tmp_path)
    drop_other_shards(tmp_path)
    journal_folders(one, tmp_path)
    assert not (folder / "a.segment").exists()
