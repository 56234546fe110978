"""Checkpoints and a broken disk: whatever it does, the newest whole one is found, and it is never a wrong one."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from drqn_dist.checkpoint import Checkpoint, CheckpointFolder
from drqn_dist.errors import CheckpointError
from drqn_dist.experiments.run_folder import create_run, open_run
from drqn_dist.presets import preset
from tests.disk import Call, Disk, crashes

KEPT = 2


def write(folder: Path, updates: int) -> Path:
    """A checkpoint of which every part tells its number."""
    tensors = {"network.weight": torch.full((3, 4), float(updates)), "rng": torch.arange(5, dtype=torch.uint8)}
    return CheckpointFolder(folder, KEPT).write(updates, tensors, {"updates": updates, "name": "ε"})


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint, after a look at whether it is as it was written."""
    found = CheckpointFolder(folder, KEPT).latest()
    if found is not None:
        assert found.meta == {"updates": found.updates, "name": "ε"}
        assert found.tensors.keys() == {"network.weight", "rng"}
        assert found.tensors["network.weight"].tolist() == [[float(found.updates)] * 4] * 3
        assert found.tensors["rng"].tolist() == [0, 1, 2, 3, 4]
    return found


def updates(found: Checkpoint | None) -> int:
    return 0 if found is None else found.updates


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A folder of two checkpoints, and the bytes of the newer one."""
    folder = tmp_path_factory.mktemp("two")
    write(folder, 1)
    return folder, write(folder, 2).read_bytes()


def damaged(two: tuple[Path, bytes], to: Path, content: bytes) -> int:
    """Which checkpoint is found where the newer one has this content."""
    shutil.copytree(two[0], to, dirs_exist_ok=True)
    (to / "checkpoint_0000000002.safetensors").write_bytes(content)
    return updates(newest(to))


def test_one_that_is_cut_off_anywhere_is_skipped(two: tuple[Path, bytes], tmp_path: Path) -> None:
    whole = two[1]
    assert [damaged(two, tmp_path, whole[:end]) for end in range(len(whole))] == [1] * len(whole)
    assert damaged(two, tmp_path, whole) == 2


def test_one_with_any_changed_byte_is_skipped(two: tuple[Path, bytes], tmp_path: Path) -> None:
    whole, rng = two[1], np.random.default_rng(0)
    for at, bit in enumerate(rng.integers(0, 8, len(whole)).tolist()):
        content = bytearray(whole)
        content[at] ^= 1 << bit
        assert damaged(two, tmp_path, bytes(content)) == 1, (at, bit)


@pytest.mark.parametrize("seed", range(4))
def test_one_with_other_damage_is_skipped(two: tuple[Path, bytes], tmp_path: Path, seed: int) -> None:
    whole, rng = two[1], np.random.default_rng(seed)
    other = (two[0] / "checkpoint_0000000001.safetensors").read_bytes()
    numbers = 8 + int.from_bytes(whole[:8], "little")
    assert whole[numbers:] != other[numbers:]
    for _ in range(50):
        first, end = sorted(rng.integers(0, len(whole) + 1, 2).tolist())
        part = whole[first:end]
        for content in (
            whole[:first] + bytes(len(part)) + whole[end:],
            whole[:first] + rng.bytes(len(part)) + whole[end:],
            whole[:first] + whole[end:],
            whole[:end] + part + whole[end:],
            whole[: max(first, numbers)] + other[max(first, numbers) :],
            whole + part,
        ):
            if content != whole:
                assert damaged(two, tmp_path, content) == 1


def test_the_one_that_was_skipped_is_named_with_the_reason(
    two: tuple[Path, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = two[1][:-1] + bytes([two[1][-1] ^ 1])
    with caplog.at_level(logging.WARNING):
        assert damaged(two, tmp_path, content) == 1
    (line,) = caplog.messages
    assert line.startswith("skipped a checkpoint: ")
    assert "checkpoint_0000000002.safetensors" in line
    assert "SHA-256" in line


def test_one_that_cannot_be_read_does_not_count_once_a_run_goes_on_without_it(tmp_path: Path) -> None:
    """The run goes on from 20 and passes 30, which is broken: then 20 and 31 are kept, not 30 and 31."""

    def names() -> list[str]:
        return [path.name.removeprefix("checkpoint_00000000") for path in sorted(tmp_path.iterdir())]

    folder = CheckpointFolder(tmp_path, KEPT)
    write(tmp_path, 20)
    write(tmp_path, 30).write_bytes(b"broken")
    assert updates(newest(tmp_path)) == 20
    assert [path.name for path in folder.set_aside(20)] == ["checkpoint_0000000030.safetensors.unreadable"]
    assert updates(newest(tmp_path)) == 20
    write(tmp_path, 31)
    assert names() == ["20.safetensors", "30.safetensors.unreadable", "31.safetensors"]
    write(tmp_path, 32)
    assert names() == ["31.safetensors", "32.safetensors"]
    assert folder.set_aside(32) == []


def calls_of_a_third(tmp_path: Path) -> list[Call]:
    """What the third checkpoint of a run asks of the disk."""
    folder, disk = tmp_path / "recorded", Disk()
    write(folder, 1)
    write(folder, 2)
    with pytest.MonkeyPatch.context() as patched:
        disk.stand_in(patched)
        write(folder, 3)
    return disk.calls


def test_a_checkpoint_is_written_in_these_steps(tmp_path: Path) -> None:
    assert [(call.what, call.path.name) for call in calls_of_a_third(tmp_path)] == [
        ("create", "checkpoint_0000000003.safetensors.tmp"),
        ("write", "checkpoint_0000000003.safetensors.tmp"),
        ("sync", "checkpoint_0000000003.safetensors.tmp"),
        ("rename", "checkpoint_0000000003.safetensors.tmp"),
        ("sync folder", "recorded"),
        ("unlink", "checkpoint_0000000001.safetensors"),
    ]


STEPS = 6
ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS]


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
@pytest.mark.parametrize("step", range(STEPS))
def test_an_error_at_any_step_is_clear_and_leaves_the_last_good_one(
    tmp_path: Path, step: int, for_good: bool, number: int
) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2)

    def fail(at: int, call: Call) -> None:
        if at == step or (for_good and at > step):
            raise OSError(number, os.strerror(number))

    failed = ""
    with pytest.MonkeyPatch.context() as patched:
        Disk(fail).stand_in(patched)
        try:
            write(tmp_path, 3)
        except CheckpointError as error:
            failed = str(error)
    if step < 5:  # after that it is written, and an older one stays for a while
        assert failed.startswith(f"could not write checkpoint {tmp_path}/checkpoint_0000000003.safetensors: ")
        assert os.strerror(number) in failed
        assert for_good or not list(tmp_path.glob("*.tmp"))
    assert updates(newest(tmp_path)) == (2 if step < 4 else 3)
    write(tmp_path, 4)
    assert updates(newest(tmp_path)) == 4
    kept = (2, 4) if step < 4 else (3, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint_{n:010d}.safetensors" for n in kept]


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", range(STEPS))
def test_a_process_that_is_killed_at_any_step_leaves_the_last_good_one_and_the_next_one_tidies_up(
    tmp_path: Path, step: int
) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2)
    gone = False

    def kill(at: int, call: Call) -> None:
        nonlocal gone
        gone = gone or at == step
        if gone:  # it does nothing any more, whatever its code would do on the way out
            raise Killed

    with pytest.MonkeyPatch.context() as patched:
        Disk(kill).stand_in(patched)
        with pytest.raises(Killed):
            write(tmp_path, 3)
    assert updates(newest(tmp_path)) == (2 if step < 4 else 3)
    write(tmp_path, 5)
    assert updates(newest(tmp_path)) == 5
    assert len(list(tmp_path.iterdir())) == KEPT


@pytest.mark.parametrize("step", range(STEPS - 1))
def test_a_signal_at_any_step_leaves_no_rubbish(tmp_path: Path, step: int) -> None:
    write(tmp_path, 1)

    def interrupt(at: int, call: Call) -> None:
        if at == step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        Disk(interrupt).stand_in(patched)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, 2)
    assert updates(newest(tmp_path)) == (1 if step < 4 else 2)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "small", place], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root may mount")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_really_full_is_gone_on_with_once_there_is_room(small_disk: Path) -> None:
    write(small_disk, 1)
    write(small_disk, 2)
    (small_disk / "others").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(CheckpointError, match=f"could not write .*: {os.strerror(errno.ENOSPC)}; the previous .* free"):
        write(small_disk, 3)
    assert updates(newest(small_disk)) == 2
    assert len(list(small_disk.iterdir())) == 3
    (small_disk / "others").unlink()
    write(small_disk, 3)
    assert updates(newest(small_disk)) == 3


def test_a_machine_that_crashes_at_any_moment_has_the_last_one_that_was_written(tmp_path: Path) -> None:
    """What came back from `write` is there, or the next one, whatever the crash took of what was not synced."""
    root = tmp_path / "disk"
    root.mkdir()
    disk, written = Disk(), [0]
    with pytest.MonkeyPatch.context() as patched:
        disk.stand_in(patched)
        for n in (1, 2, 3, 4):
            write(root / "run" / "checkpoints", n)
            written.append(len(disk.calls))
    found = set()
    for end in range(len(disk.calls) + 1):
        safe = sum(calls <= end for calls in written) - 1
        for left in crashes(disk.calls[:end], root):
            after = updates(newest(laid_out(tmp_path / "crashed", left) / "run" / "checkpoints"))
            assert safe <= after <= safe + 1, (disk.calls[end - 1], left.keys())
            found.add((safe, after))
    assert found == {(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (3, 4), (4, 4)}


def test_a_machine_that_crashes_has_the_configuration_of_before_or_after(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    disk = Disk()
    config = replace(preset("pong-cpu"), minutes=None, run_dir=str(root / "runs"))
    with pytest.MonkeyPatch.context() as patched:
        disk.stand_in(patched)
        run = create_run(config, [])
        made = len(disk.calls)
        run.go_on(replace(config, minutes=5.0), 1, 2, [])
    changed = len(disk.calls)
    found = set()
    for end in range(made, changed + 1):
        for left in crashes(disk.calls[:end], root):
            after = open_run(laid_out(tmp_path / "crashed", left) / "runs" / run.path.name)
            assert after.config.minutes in ((5.0,) if end == changed else (None, 5.0))
            found.add(after.config.minutes)
    assert found == {None, 5.0}


def laid_out(place: Path, left: dict[Path, bytes]) -> Path:
    """What a crash left, as a folder."""
    shutil.rmtree(place, ignore_errors=True)
    for path, content in left.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(content)
    return place
