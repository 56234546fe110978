"""Priorities and seen numbers of a replay as one file beside its journal: arrays and JSON, nothing that can execute,
and a checksum of both, so that a disk that returns other bytes than it was given is noticed."""

import json
import logging
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from drqn_dist.errors import shown
from drqn_dist.reading import parse_json
from replay_server.sum_tree import Floats

_FAMILY = "drqn-dist-priorities-"
_FORMAT = f"{_FAMILY}3"
_log = logging.getLogger(__name__)


class OtherFormatError(ValueError):
    """A snapshot of another version of this program."""


@dataclass(frozen=True)
class Snapshot:
    """What the journal's records do not tell."""

    first_window: int = 0
    stamp: tuple[int, int] = (-1, -1)
    """Steps inserted and sampled when it was taken."""
    scale: str = ""
    """What the weights are: priorities to which power, or 1 each."""
    weights: Floats = field(default_factory=lambda: np.zeros(0))
    """float64 [W], of the windows first_window … first_window + W - 1: priority ** exponent."""
    seen: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    """Sequence numbers seen of each (actor, environment), as `SeenNumbers.edges`."""

    def to_bytes(self) -> bytes:
        """For a file."""
        keys = np.array(list(self.seen), np.int64).reshape(-1, 2)
        edges = list(self.seen.values())
        tensors: dict[str, npt.NDArray[np.generic]] = {
            "weights": self.weights,
            "seen_keys": keys,
            "seen_counts": np.array([len(some) for some in edges], np.int64),
            "seen_edges": np.array([edge for some in edges for edge in some], np.int64),
        }
        facts = json.dumps({"first_window": self.first_window, "stamp": list(self.stamp), "scale": self.scale})
        meta = {"format": _FORMAT, "meta": facts, "crc32": str(_crc32(tensors, facts))}
        return bytes(safetensors.numpy.save(tensors, meta))

    def weights_of(self, first: int, count: int) -> Floats:
        """Weights float64 [N <= count] of those windows from id `first` on that it knows.

        It knows all up to a moment, so that those that it does not know are the last ones, or are gone.
        """
        at = first - self.first_window
        return self.weights[at : at + count] if at >= 0 else self.weights[:0]


def read_snapshot(path: Path) -> Snapshot:
    """Reads a snapshot; one that is missing, damaged or of another version is empty: then windows keep the priorities
    that they came with.

    Raises:
        OSError: the file is there and cannot be read.
    """
    try:
        return load_snapshot(path)
    except FileNotFoundError:
        return Snapshot()
    except ValueError as error:
        _log.warning("%s is of no use, and windows keep the priorities that they came with: %s", path, error)
        return Snapshot()


def load_snapshot(path: Path) -> Snapshot:
    """Reads a snapshot.

    Raises:
        OSError: the file is missing or cannot be read.
        OtherFormatError: it is of another version.
        ValueError: it is damaged.
    """
    raw = path.read_bytes()  # not mapped: a bad sector would then be a signal, not an error
    try:
        arrays = safetensors.numpy.load(raw)
        meta = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")]).get("__metadata__") or {}
    except MemoryError:
        raise
    except Exception as error:  # safetensors' own, or what numpy says to the types and shapes in arbitrary bytes
        raise ValueError(shown(error)) from error
    try:
        if meta.get("format") != _FORMAT:
            told = f"it is of format {shown(meta.get('format'))}, but this program reads {_FORMAT!r}"
            raise OtherFormatError(told) if str(meta.get("format")).startswith(_FAMILY) else ValueError(told)
        if meta["crc32"] != str(_crc32(arrays, meta["meta"])):
            raise ValueError("its checksum is not that of what it says")
        facts = parse_json(meta["meta"])
        first_window, (inserted, sampled), scale = facts["first_window"], facts["stamp"], facts["scale"]
        if not all(type(number) is int and abs(number) < 2**62 for number in (first_window, inserted, sampled)):
            raise ValueError(f"its numbers are {shown(facts)}")
        weights, seen = _checked(arrays)
        return Snapshot(first_window, (inserted, sampled), str(scale), weights, seen)
    except (KeyError, TypeError) as error:
        raise ValueError(shown(error)) from error


def _crc32(arrays: Mapping[str, npt.NDArray[np.generic]], facts: str) -> int:
    """Over names, types, shapes and bytes of arrays, in the order of their names, and the facts' JSON."""
    crc = zlib.crc32(facts.encode())
    for name in sorted(arrays):
        crc = zlib.crc32(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode(), crc)
        crc = zlib.crc32(arrays[name].tobytes(), crc)
    return crc


def _checked(arrays: dict[str, npt.NDArray[Any]]) -> tuple[Floats, dict[tuple[int, int], list[int]]]:
    weights, keys = arrays["weights"], arrays["seen_keys"]
    counts, edges = arrays["seen_counts"], arrays["seen_edges"]
    if weights.dtype != np.float64 or weights.ndim != 1 or not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("weights must be float64 [W], finite and not negative")
    if any(array.dtype != np.int64 for array in (keys, counts, edges)) or keys.shape != (len(counts), 2):
        raise ValueError("the numbers seen must be int64, with a key for each")
    if (counts < 0).any() or counts.sum() != len(edges) or edges.ndim != 1:
        raise ValueError(f"{len(edges)} edges are not what the counts say")
    parts = np.split(edges, np.cumsum(counts)[:-1]) if len(counts) else []
    if any(len(part) % 2 or (np.diff(part) <= 0).any() for part in parts):
        raise ValueError("the edges of what was seen must come in pairs and rise")
    seen = {(int(actor), int(env)): part.tolist() for (actor, env), part in zip(keys, parts, strict=True)}
    return weights, seen
