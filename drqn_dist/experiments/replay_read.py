"""Reading the journals of a run's replay from outside, also while the run writes them; nothing is changed.

A fragment is told by its `Entry`, about a kilobyte without its arrays; payloads are read again where they are needed,
so that a journal of any size is read in little memory.
"""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from drqn_dist.codec import FragmentHeader, decode_header
from drqn_dist.config import WindowShape
from drqn_dist.errors import RunFolderError
from drqn_dist.experiments.run_folder import RunFolder
from replay_server.journal import SNAPSHOT
from replay_server.segments import RECORD_HEAD_BYTES, Contents, Record, read_segment, segment_paths
from replay_server.snapshot import OtherFormatError, Snapshot, load_snapshot
from replay_server.storage import EpisodeKey, episode_key
from replay_server.windows import check_cut

OPENING_TRIES = 100
_FIND_BYTES = 2**16
_NO_PRIORITIES = np.zeros(0, np.float32)


class SegmentFile:
    """A segment as it was when it was opened, read piece by piece.

    It is not mapped: a replay that starts again meanwhile may cut a torn tail off, and reading a page that is gone
    would kill this process. What was evicted stays readable for whoever has it open.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._file = os.open(path, os.O_RDONLY)
        self._size = os.fstat(self._file).st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        return os.pread(self._file, max(0, stop - start), start)

    def find(self, sought: bytes, start: int) -> int:
        """Where it comes first, from `start` on; -1 where it does not."""
        for at in range(start, self._size, _FIND_BYTES):
            found = self[at : at + _FIND_BYTES + len(sought) - 1].find(sought)
            if found >= 0:
                return at + found
        return -1

    def close(self) -> None:
        os.close(self._file)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands."""

    shard: str
    segment: SegmentFile
    at: int
    """Its first byte."""
    number: int
    """Counts the whole records of the file from 0."""

    def __str__(self) -> str:
        return f"{self.shard}/{self.segment.name} record {self.number} (byte {self.at:,})"


@dataclass(frozen=True, slots=True)
class Entry:
    """A fragment of a journal without its arrays."""

    place: Place
    serial: int
    first_window: int
    num_windows: int
    inserted_steps: int
    live: int
    num_bytes: int
    """Of the payload."""
    header: FragmentHeader
    """Without its priorities."""

    def key(self, fragment_steps: int) -> EpisodeKey:
        """Of its episode."""
        return episode_key(self.header, fragment_steps)


@dataclass
class ShardJournal:
    """What one shard of the replay keeps on disk."""

    name: str
    segments: list[SegmentFile]
    snapshot: Snapshot | None
    """None where there is none, or it is of no use."""
    snapshot_fault: str
    snapshot_note: str
    """Why it is of no use although nothing is wrong with it."""
    snapshot_bytes: int
    snapshot_age_s: float | None
    contents: Contents = field(default_factory=Contents)
    """All but the records; complete once `records` has come to its end."""

    @property
    def num_bytes(self) -> int:
        """Of all segments."""
        return sum(map(len, self.segments))

    def records(self) -> Iterator[tuple[Place, Record]]:
        """All whole records in order of arrival, one at a time.

        Raises:
            RunFolderError: a file cannot be read.
        """
        self.contents = Contents()
        for segment in self.segments:
            newest = segment is self.segments[-1]
            try:
                for number, (at, record) in enumerate(read_segment(segment.name, segment, newest, self.contents)):
                    yield Place(self.name, segment, at, number), record
            except OSError as error:
                raise RunFolderError(
                    f"cannot read {self.name}/{segment.name} of the journal: {error.strerror or error}"
                ) from error


def entry_of(place: Place, record: Record, max_bytes: int, window: WindowShape | None = None) -> Entry:
    """
    Raises:
        FragmentError: the payload is no fragment of at most `max_bytes`, packed or unpacked, or was not cut as windows
            of this shape need it.
    """
    header = decode_header(record.payload, max_bytes)
    if window is not None:
        check_cut(window, header)
    windows = len(header.priorities)
    # They are a view, and would keep the whole payload.
    header = header._replace(priorities=_NO_PRIORITIES)
    return Entry(
        place,
        record.serial,
        record.first_window,
        windows,
        record.inserted_steps,
        record.live,
        len(record.payload),
        header,
    )


def read_payload(entry: Entry) -> bytes:
    """The fragment again; whoever decodes it finds its checksum to be right."""
    head = entry.place.at + RECORD_HEAD_BYTES
    return entry.place.segment[head : head + entry.num_bytes]


def stored(entries: list[Entry]) -> list[Entry]:
    """Those that the replay held in the end; the others are evicted but still on the disk."""
    if not entries:
        return []
    oldest = entries[-1].serial + 1 - entries[-1].live
    return [entry for entry in entries if entry.serial >= oldest]


def episodes(entries: Iterable[Entry], fragment_steps: int) -> dict[EpisodeKey, dict[int, Entry]]:
    """The fragments of each episode by their place in it, episodes in order of their first arrival."""
    found: dict[EpisodeKey, dict[int, Entry]] = {}
    for entry in entries:
        found.setdefault(entry.key(fragment_steps), {})[entry.header.first_step // fragment_steps] = entry
    return found


def is_complete(episode: dict[int, Entry]) -> bool:
    """Whether all its fragments are there, the last one too."""
    last = max(episode)
    return len(episode) == last + 1 and episode[last].header.ends_episode


@contextmanager
def open_journals(run: RunFolder) -> Iterator[list[ShardJournal]]:
    """Opens the journals of all shards.

    Raises:
        RunFolderError: the run has none, or it cannot be read.
    """
    with ExitStack() as stack:
        try:
            shards = [_open_shard(name, folder, stack) for name, folder in shard_folders(run.path)]
        except OSError as error:
            raise RunFolderError(f"cannot read the journal in {run.path}: {error.strerror or error}") from error
        if not any(shard.segments for shard in shards):
            kept = (
                "it was begun without one (replay.journal false)"
                if not run.config.replay.journal
                else ("it has stored nothing yet, or is of a version that kept none")
            )
            raise RunFolderError(f"{run.path} has no replay journal: {kept}")
        yield shards


def shard_folders(run: Path) -> list[tuple[str, Path]]:
    """Name and folder of each shard's journal. Where a replay was killed while it put a rewritten journal in the old
    one's place, it is the one that the next start will take."""
    root = run / "replay"
    names = {path.name.removesuffix(".new").removesuffix(".old") for path in root.glob("*") if path.is_dir()}
    found = []
    for name in sorted((name for name in names if name.isdecimal()), key=int):
        paths = [root / name, root / f"{name}.new", root / f"{name}.old"]
        # Without the folder itself or an old one, a new one is not complete.
        there = [path for path in paths if path.is_dir()]
        if there and there != [root / f"{name}.new"]:
            found.append((name, there[0]))
    return found


def _open_shard(name: str, folder: Path, stack: ExitStack) -> ShardJournal:
    # First, so that the segments hold all that it knows of.
    snapshot, fault, note, num_bytes, age_s = _open_snapshot(folder / SNAPSHOT)
    for _ in range(OPENING_TRIES):
        segments: list[SegmentFile] = []
        try:
            for path in segment_paths(folder):
                segments.append(SegmentFile(path))
        except FileNotFoundError:  # evicted since it was listed
            for segment in segments:
                segment.close()
            continue
        for segment in segments:
            stack.callback(segment.close)
        return ShardJournal(name, segments, snapshot, fault, note, num_bytes, age_s)
    raise RunFolderError(f"the files of {folder} come and go too fast to be read; try again")


def _open_snapshot(path: Path) -> tuple[Snapshot | None, str, str, int, float | None]:
    """The snapshot, what is wrong with it, why it is of no use otherwise, its size and its age in seconds."""
    found, fault, note = None, "", ""
    try:
        status = path.stat()
        found = load_snapshot(path)
    except FileNotFoundError:
        return None, "", "", 0, None
    except OtherFormatError as error:
        note = str(error)
    except ValueError as error:
        fault = str(error)
    return found, fault, note, status.st_size, max(0.0, time.time() - status.st_mtime)
