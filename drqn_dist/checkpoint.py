"""Checkpoints: one safetensors file each, written atomically, with its metadata as JSON in the file's header.

safetensors holds raw arrays and a JSON header, so loading one cannot execute code.
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

from drqn_dist.errors import CheckpointError
from drqn_dist.files import write_atomically

FORMAT = "drqn-dist-checkpoint"
FORMAT_VERSION = 3

_NAME = re.compile(r"checkpoint_(\d+)\.safetensors")
_log = logging.getLogger(__name__)


def save(path: Path, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
    """Writes tensors (any shape, dtype and device) and JSON-able metadata to `path`, all or nothing.

    Raises:
        CheckpointError: the file could not be written.
        TypeError: `meta` is not JSON-able.
    """
    header = {"format": FORMAT, "version": str(FORMAT_VERSION), "meta": json.dumps(meta)}
    # clone: safetensors refuses tensors that share memory, as tied or flattened parameters do.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, safetensors.torch.save(plain, header))
    except OSError as error:
        raise CheckpointError(
            f"could not write checkpoint {path}: {error.strerror or error}; the previous checkpoint, if any, is "
            "untouched; free some space or check the folder's permissions"
        ) from error


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Reads a checkpoint: its tensors, on the CPU, and its metadata.

    Raises:
        CheckpointError: the file is missing, truncated, or not a checkpoint of this program and version.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            # clone: the file's pages are mapped, and a tensor must outlive the file.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"could not read checkpoint {path}: {error}; it is missing, truncated or not a safetensors file; "
            "resume from an earlier one"
        ) from error
    if header.get("format") != FORMAT or header.get("version") != str(FORMAT_VERSION):
        raise CheckpointError(
            f"{path} is of format {header.get('format')!r} version {header.get('version')!r}, but this program reads "
            f"{FORMAT!r} version {FORMAT_VERSION}; use the program version that wrote it"
        )
    try:
        meta = json.loads(header["meta"])
    except (KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"the metadata of checkpoint {path} is damaged; resume from an earlier one") from error
    return tensors, meta


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

    updates: int
    """Learner updates done when it was written."""
    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]


class CheckpointFolder:
    """The newest `kept` checkpoints of a run, named checkpoint_<updates>.safetensors. For one thread."""

    def __init__(self, folder: Path, kept: int) -> None:
        self.folder = folder
        self.kept = kept

    def paths(self) -> dict[int, Path]:
        """All checkpoints by their updates, oldest first."""
        found = {int(m[1]): p for p in self.folder.glob("checkpoint_*") if (m := _NAME.fullmatch(p.name))}
        return dict(sorted(found.items()))

    def write(self, updates: int, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> Path:
        """Saves a checkpoint, then removes those that are too old.

        Raises:
            CheckpointError: it could not be written; the earlier ones stay.
        """
        path = self.folder / f"checkpoint_{updates:010d}.safetensors"
        save(path, tensors, meta)
        # Newer ones than this belong to a future that was given up: a run that resumed from an older checkpoint.
        paths = self.paths()
        for old in paths.keys() - set([done for done in paths if done <= updates][-self.kept :]):
            with contextlib.suppress(OSError):
                paths[old].unlink(missing_ok=True)
        return path

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that can be read, or None where none was ever written.

        Raises:
            CheckpointError: there are checkpoints, but none is readable.
        """
        failure: CheckpointError | None = None
        for updates, path in reversed(self.paths().items()):
            try:
                tensors, meta = load(path)
            except CheckpointError as error:
                _log.warning("skipped a checkpoint: %s", error)
                failure = error
                continue
            return Checkpoint(updates, tensors, meta)
        if failure is not None:
            raise CheckpointError(f"no checkpoint in {self.folder} can be read; the oldest one: {failure}") from failure
        return None
