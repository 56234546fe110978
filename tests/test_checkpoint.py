from __future__ import annotations

import errno
import hashlib
import logging
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch

from drqn_dist.checkpoint import CheckpointFolder, load, save
from drqn_dist.errors import CheckpointError, CheckpointUnreadError


def _tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {
        "network.weight": torch.full((3, 4), value),
        "step": torch.tensor(7, dtype=torch.int64),
        "rng": torch.arange(16, dtype=torch.uint8),
    }


@contextmanager
def _full_disk(limit_bytes: int) -> Iterator[None]:
    """Every file that grows beyond the limit fails with an OSError, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    meta = {"updates": 12, "rng": {"state": 2**127 + 1}, "name": "ε"}
    save(path, _tensors(0.1), meta)
    tensors, loaded = load(path)
    assert loaded == meta
    assert tensors.keys() == _tensors().keys()
    for name, tensor in _tensors(0.1).items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_tensors_that_share_memory_or_are_strided_can_be_saved(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    save(tmp_path / "c", {"all": base, "row": base[1], "transposed": base.T}, {})
    tensors, _ = load(tmp_path / "c")
    assert tensors["row"].tolist() == [4.0, 5.0, 6.0, 7.0]
    assert torch.equal(tensors["transposed"], base.T)


def test_tensors_of_every_type_and_shape_come_back(tmp_path: Path) -> None:
    types = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.complex64, torch.int16]
    saved = {str(dtype): torch.tensor([[0, 1], [2, 3]]).to(dtype) for dtype in types}
    saved |= {"number": torch.tensor(7), "none": torch.zeros(0, 3), "none repeated": torch.zeros(0).expand(4, 0)}
    save(tmp_path / "c", saved, {})
    tensors, _ = load(tmp_path / "c")
    assert {name: (t.dtype, t.shape) for name, t in tensors.items()} == {
        n: (t.dtype, t.shape) for n, t in saved.items()
    }
    assert all(torch.equal(tensors[name], tensor) for name, tensor in saved.items())


def test_a_checkpoint_of_before_there_were_checksums_is_read(tmp_path: Path) -> None:
    header = {"format": "drqn-dist-checkpoint", "version": "3", "meta": '{"updates": 3}'}
    safetensors.torch.save_file(_tensors(), tmp_path / "c", header)
    tensors, meta = load(tmp_path / "c")
    assert meta == {"updates": 3}
    assert torch.equal(tensors["network.weight"], _tensors()["network.weight"])
    assert tensors["network.weight"].is_contiguous()


def test_a_checksum_counts_whatever_version_the_file_says_it_is(tmp_path: Path) -> None:
    header = {"format": "drqn-dist-checkpoint", "version": "3", "meta": "{}", "sha256": "0" * 64}
    safetensors.torch.save_file(_tensors(), tmp_path / "c", header)
    with pytest.raises(CheckpointError, match="is damaged: its SHA-256 is "):
        load(tmp_path / "c")


def test_the_checksum_is_that_of_all_that_the_file_says(tmp_path: Path) -> None:
    """Worked out here by hand, from the file as another program reads it."""
    save(tmp_path / "c", {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor([[3]], dtype=torch.uint8)}, {"n": 1})
    said = (
        b"a torch.uint8 [1, 1]\n" + bytes([3]) + b"b torch.float32 [2]\n" + struct.pack("<ff", 1.0, 2.0) + b'{"n": 1}'
    )
    with safetensors.safe_open(tmp_path / "c", framework="numpy") as file:
        assert file.metadata()["sha256"] == hashlib.sha256(said).hexdigest()


def test_a_loaded_tensor_does_not_change_when_its_file_does(tmp_path: Path) -> None:
    save(tmp_path / "c", {"x": torch.ones(1000)}, {})
    tensors, _ = load(tmp_path / "c")
    (tmp_path / "c").write_bytes(b"\0" * (tmp_path / "c").stat().st_size)
    assert torch.equal(tensors["x"], torch.ones(1000))


def test_a_full_disk_leaves_the_last_good_checkpoint_and_no_rubbish(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, kept=2)
    folder.write(1, _tensors(1.0), {"good": True})
    with _full_disk(4096), pytest.raises(CheckpointError, match=r"could not write .* free some space"):
        folder.write(2, {"large": torch.zeros(100_000)}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint_0000000001.safetensors"]
    latest = folder.latest()
    assert latest is not None
    assert latest.meta == {"good": True}


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not write checkpoint"):
        CheckpointFolder(tmp_path / "file" / "checkpoints", kept=1).write(1, _tensors(), {})


@pytest.mark.parametrize("kept_bytes", [0, 5, 100, -1])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, kept_bytes: int) -> None:
    path = tmp_path / "c"
    save(path, _tensors(), {})
    path.write_bytes(path.read_bytes()[:kept_bytes])
    with pytest.raises(CheckpointError, match="truncated"):
        load(path)


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        load(tmp_path / "none")


def test_a_safetensors_file_of_another_program_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file(_tensors(), tmp_path / "c")
    with pytest.raises(CheckpointError, match="of format None"):
        load(tmp_path / "c")


def test_a_newer_format_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    header = {"format": "drqn-dist-checkpoint", "version": "5", "meta": "{}"}
    safetensors.torch.save_file(_tensors(), tmp_path / "c", header)
    with pytest.raises(CheckpointError, match=r"version '5'.*use the program version that wrote it"):
        load(tmp_path / "c")


def test_damaged_metadata_is_refused(tmp_path: Path) -> None:
    header = {"format": "drqn-dist-checkpoint", "version": "3", "meta": "{"}
    safetensors.torch.save_file(_tensors(), tmp_path / "c", header)
    with pytest.raises(CheckpointError, match="metadata"):
        load(tmp_path / "c")


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints", kept=2)
    for updates in (5, 1_000_000, 20_000_000):
        folder.write(updates, _tensors(), {"updates": updates})
    assert [p.name for p in folder.paths().values()] == [
        "checkpoint_0001000000.safetensors",
        "checkpoint_0020000000.safetensors",
    ]
    latest = folder.latest()
    assert latest is not None
    assert latest.updates == 20_000_000


def test_a_truncated_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = CheckpointFolder(tmp_path, kept=2)
    folder.write(1, _tensors(), {"n": 1})
    newest = folder.write(2, _tensors(), {"n": 2})
    newest.write_bytes(newest.read_bytes()[:-10])
    with caplog.at_level(logging.WARNING):
        latest = folder.latest()
    assert latest is not None
    assert (latest.updates, latest.meta) == (1, {"n": 1})
    assert "checkpoint_0000000002" in caplog.text


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_one_that_the_disk_does_not_give_is_an_error_and_no_reason_to_fall_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Who would rather fall back may, but not for lack of memory: an earlier one is as large."""
    folder = CheckpointFolder(tmp_path, kept=2)
    folder.write(1, _tensors(), {"n": 1})
    newest, whole = folder.write(2, _tensors(), {"n": 2}), Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path == newest:
            raise error
        return whole(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", read_bytes)
        with pytest.raises(CheckpointUnreadError, match=rf"{newest.name}: (Input/output error|.* memory);.* try again"):
            folder.latest()
        if isinstance(error, OSError):
            earlier = folder.latest(skip_unread=True)
            assert earlier is not None
            assert earlier.meta == {"n": 1}
        else:
            with pytest.raises(CheckpointUnreadError):
                folder.latest(skip_unread=True)
    latest = folder.latest()
    assert latest is not None
    assert latest.meta == {"n": 2}


def test_too_little_memory_for_its_tensors_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(tmp_path, kept=2)
    folder.write(1, _tensors(), {})

    def load(raw: bytes) -> None:
        raise MemoryError

    monkeypatch.setattr(safetensors.torch, "load", load)
    with pytest.raises(CheckpointUnreadError, match="does not fit into memory; free some, and try again"):
        folder.latest(skip_unread=True)


def test_a_run_that_fell_back_does_not_lose_its_new_checkpoint_to_the_broken_one(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, kept=1)
    folder.folder.joinpath("checkpoint_0000000100.safetensors").write_bytes(b"broken")
    folder.write(90, _tensors(), {"n": 90})
    latest = folder.latest()
    assert latest is not None
    assert latest.updates == 90
    assert len(folder.paths()) == 1


def test_no_checkpoint_at_all_is_none_and_none_readable_an_error(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, kept=2)
    assert folder.latest() is None
    (tmp_path / "checkpoint_0000000001.safetensors").write_bytes(b"broken")
    (tmp_path / "checkpoint_notes.txt").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole, of 1: copy one back") as refused:
        folder.latest()
    assert str(refused.value).count("damaged") == 1
