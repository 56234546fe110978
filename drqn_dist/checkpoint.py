"""Checkpoints: one safetensors file each, written atomically, with its metadata as JSON in the file's header.

safetensors holds raw arrays and a JSON header, so loading one cannot execute code. The header also has a SHA-256 of
all that the file says, so that a disk that returns other bytes than it was given is noticed.
"""

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from drqn_dist.errors import CheckpointError, CheckpointUnreadError, shown
from drqn_dist.files import TEMPORARY, make_folder, write_atomically
from drqn_dist.reading import parse_json

FORMAT = "drqn-dist-checkpoint"
FORMAT_VERSION = 4
_UNCHECKED_VERSION = 3
"""Is read as well; it had no SHA-256."""

_NAME = re.compile(r"checkpoint_(\d+)\.safetensors")
_ASIDE = ".unreadable"
_log = logging.getLogger(__name__)


def save(path: Path, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
    """Writes tensors (any shape, dtype and device) and JSON-able metadata to `path`, all or nothing.

    Raises:
        CheckpointError: the file could not be written.
        TypeError: `meta` is not JSON-able.
    """
    # clone: safetensors refuses tensors that share memory, as tied or flattened parameters do.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    facts = json.dumps(meta)
    header = {"format": FORMAT, "version": str(FORMAT_VERSION), "meta": facts, "sha256": _sha256(plain, facts)}
    try:
        make_folder(path.parent)
        write_atomically(path, safetensors.torch.save(plain, header))
    except OSError as error:
        raise CheckpointError(
            f"could not write checkpoint {path}: {error.strerror or error}; the previous checkpoint, if any, is "
            "untouched; free some space or check the folder's permissions"
        ) from error


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Reads a checkpoint: its tensors, on the CPU, and its metadata. Takes twice its size of memory for a moment.

    Raises:
        CheckpointUnreadError: the file is not there, or cannot be read.
        CheckpointError: it is damaged, or no checkpoint of this program and version.
    """
    try:
        return _parsed(path.read_bytes(), path)  # not mapped: a bad sector would then be a signal, not an error
    except OSError as error:
        raise CheckpointUnreadError(
            f"could not read checkpoint {path}: {error.strerror or error}; try again, and if it stays so, move the "
            "file away to go on from an earlier one"
        ) from error
    except MemoryError as error:
        raise CheckpointUnreadError(
            f"could not read checkpoint {path}: it does not fit into memory; free some, and try again"
        ) from error


def _parsed(raw: bytes, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        tensors = safetensors.torch.load(raw)
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")]).get("__metadata__") or {}
    except MemoryError:
        raise
    except Exception as error:  # safetensors' own, or what torch says to the types and shapes in arbitrary bytes
        raise CheckpointError(
            f"could not read checkpoint {path}: {shown(error)}; it is truncated, damaged or not a safetensors file"
        ) from error
    version = header.get("version")
    if header.get("format") != FORMAT or version not in (str(_UNCHECKED_VERSION), str(FORMAT_VERSION)):
        raise CheckpointError(
            f"{path} is of format {shown(header.get('format'))} version {shown(version)}, but this program reads "
            f"{FORMAT!r} version {FORMAT_VERSION}; use the program version that wrote it"
        )
    facts, sha256 = header.get("meta", ""), header.get("sha256")
    if sha256 is None and version == str(_UNCHECKED_VERSION):
        return tensors, _metadata(facts, path)
    found = _sha256(tensors, facts)
    if sha256 != found:
        raise CheckpointError(f"checkpoint {path} is damaged: its SHA-256 is {found}, but {shown(sha256)} was written")
    return tensors, _metadata(facts, path)


def _metadata(facts: str, path: Path) -> dict[str, Any]:
    try:
        meta = parse_json(facts)
    except ValueError as error:
        raise CheckpointError(f"the metadata of checkpoint {path} is damaged: {shown(error)}") from error
    if not isinstance(meta, dict):
        raise CheckpointError(f"the metadata of checkpoint {path} is {shown(meta)}, but must be a table")
    return meta


def _sha256(tensors: Mapping[str, torch.Tensor], facts: str) -> str:
    """Over names, types, shapes and bytes of contiguous tensors on the CPU, in the order of their names, and the
    metadata's JSON."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if tensor.numel():  # others may have strides that no view takes
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    digest.update(facts.encode())
    return digest.hexdigest()


def weights_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the online network's tensors of a checkpoint, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if name.startswith("network."):
            digest.update(name.encode())
            digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read from disk."""

    path: Path
    updates: int
    """Learner updates done when it was written."""
    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]


class CheckpointFolder:
    """The newest `kept` checkpoints of a run, named checkpoint_<updates>.safetensors. For one thread.

    One is there in whole, and survives a power cut, before an older one goes.
    """

    def __init__(self, folder: Path, kept: int) -> None:
        self.folder = folder
        self.kept = kept

    def paths(self) -> dict[int, Path]:
        """All checkpoints by their updates, oldest first."""
        return self._found("")

    def write(self, updates: int, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> Path:
        """Saves a checkpoint, then removes those that are too old.

        Raises:
            CheckpointError: it could not be written; the earlier ones stay.
        """
        path = self.folder / f"checkpoint_{updates:010d}.safetensors"
        for left in self.folder.glob(f"checkpoint_*{TEMPORARY}"):  # by a process that died while it wrote
            _remove(left)
        save(path, tensors, meta)
        # Newer ones than this belong to a future that was given up: a run that resumed from an older checkpoint.
        paths = self.paths()
        kept = [done for done in paths if done <= updates][-self.kept :]
        for old in paths.keys() - set(kept):
            _remove(paths[old])
        for done, aside in self._found(_ASIDE).items():
            if done < min(kept, default=0):
                _remove(aside)
        return path

    def set_aside(self, after: int) -> list[Path]:
        """Renames checkpoints that are newer than the one with which a run goes on: they could not be read, and would
        count among the newest in place of good ones. They stay until there are `kept` newer ones.

        Args:
            after: updates of the one with which it goes on.

        Returns:
            Their new paths.
        """
        aside = []
        for updates, path in self.paths().items():
            if updates > after:
                with contextlib.suppress(OSError):
                    aside.append(path.replace(path.with_name(path.name + _ASIDE)))
        return aside

    def latest(self, skip_unread: bool = False) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None where none was ever written. One that is damaged is skipped.

        Args:
            skip_unread: skip one as well that the disk does not give. It may be there at the next try, and who goes on
                from an earlier one gives up what came after it.

        Raises:
            CheckpointUnreadError: one could not be read.
            CheckpointError: there are checkpoints, but none is whole.
        """
        failures: list[CheckpointError] = []
        for updates, path in reversed(self.paths().items()):
            try:
                tensors, meta = load(path)
            except CheckpointError as error:
                lost = isinstance(error.__cause__, OSError)
                if isinstance(error, CheckpointUnreadError) and not (skip_unread and lost):
                    _tell(failures)
                    raise
                failures.append(error)
                continue
            _tell(failures)
            return Checkpoint(path, updates, tensors, meta)
        for failure in failures:
            if isinstance(failure, CheckpointUnreadError):  # it may be whole
                raise failure
        if failures:
            raise CheckpointError(
                f"no checkpoint in {self.folder} is whole, of {len(failures)}: copy one back from elsewhere, or start "
                f"a new run; the newest: {failures[0]}"
            ) from failures[0]
        return None

    def _found(self, ending: str) -> dict[int, Path]:
        paths = self.folder.glob(f"checkpoint_*{ending}")
        found = {int(m[1]): path for path in paths if (m := _NAME.fullmatch(path.name.removesuffix(ending)))}
        return dict(sorted(found.items()))


def _tell(skipped: list[CheckpointError]) -> None:
    for error in skipped:
        _log.warning("skipped a checkpoint: %s", error)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
