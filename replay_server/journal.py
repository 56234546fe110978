"""The replay's journal: every stored fragment, as it was received, in files that a restarted replay reads back.

::

    <folder>/
        00000000000000000000.segment      header | record | record | ...      named by its first serial number
        00000000000000004096.segment      header | record | ...               the newest is appended to
        priorities.safetensors            now and then: the priorities of all windows (see snapshot.py)

    header    | magic  | log     | boot     | crc32  |      log: whose serial numbers these are
                8 bytes  int64     16 bytes   uint32        boot: of the machine since it was started
    record    | magic  | length | crc32   | serial, first_window, inserted | live   | crc32   | payload |
                4 bytes  uint32   uint32    int64 each                       uint32   uint32    length bytes
                                  of the payload                                      of all before it

`inserted` counts the agent steps of the whole run up to and with this fragment, `live` the fragments stored then: where
the journal ends is also known what had been evicted. Numbers are little-endian.

A record is written before the replay stores its fragment, so nothing that was acknowledged or drawn is lost with the
process. What reaches the disk itself is settled by a thread every `sync_period_s`: a machine that loses power loses at
most what came in since. Segments go whole, once all their fragments are evicted.

Reading never trusts a length: it stops at a torn tail, and where a record is damaged goes on at the next whole one.
"""

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import struct
import threading
import time
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from drqn_dist.files import sync_folder, write_atomically

SNAPSHOT = "priorities.safetensors"
SNAPSHOT_PERIOD_S = 10.0
SEGMENTS = 16
"""A full replay's journal has about so many, so that about a sixteenth more than what is stored lies on the disk."""
SEGMENT_FRAGMENTS = 64
"""Of the smallest segment."""
OWNED_S = 10.0
"""A process that ends lets go of its journal within this time."""
RETRY_S = 1.0
"""After a write that failed (a full disk), the next one is tried so much later."""

_SEGMENT_MAGIC = b"DRQNJRN1"
_RECORD_MAGIC = b"\xd5REC"
_SEGMENT = struct.Struct("<8sq16sI")
_RECORD = struct.Struct("<4sIIqqqII")
_CRC = struct.Struct("<I")
_MOST = 2**62
"""No number comes near it; larger ones would overflow what is computed from them."""
RECORD_HEAD_BYTES = _RECORD.size
"""Of a record, before its payload."""
_log = logging.getLogger(__name__)


class Record(NamedTuple):
    """A stored fragment and its place in the replay."""

    serial: int
    first_window: int
    """Id of its first window."""
    inserted_steps: int
    """Agent steps that the replay had received with it, over the whole run."""
    live: int
    """Fragments stored with it."""
    payload: bytes


class SegmentBytes(Protocol):
    """A segment's bytes: `bytes`, a mapped file, or a file that is read piece by piece."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes:
        """As of `bytes`: what lies past the end is left out."""
        ...

    def find(self, sought: bytes, start: int, /) -> int:
        """Where it comes first, from `start` on; -1 where it does not."""
        ...


@dataclass
class Contents:
    """What a journal holds."""

    log: int = 0
    """Whose serial numbers these are, as the newest segment says."""
    this_boot: bool = False
    """The machine has run since the newest segment was begun, so that all that was written is there."""
    records: list[Record] = field(default_factory=list)
    """In order of arrival, with those in the oldest segment that were evicted."""
    segments: list[tuple[str, int, int]] = field(default_factory=list)
    """Of each, oldest first: name, number of whole records, and the serial number of the last one up to its end."""
    damage: list[tuple[str, int, int]] = field(default_factory=list)
    """Bytes that belong to no whole record, the torn tail apart: name of the segment, first byte, how many."""
    last_serial: int | None = None
    """Of the newest whole record."""
    missing: int = 0
    """Fragments that are not there although later ones are."""
    torn_bytes: int = 0
    """After the last whole record of the newest segment: it was being written when the process died."""
    cut_off: bool = False
    """Records at its end were left out."""
    unreadable: bool = False
    """A file could not be read; it may be readable another time."""
    one_log: bool = True
    """All segments hold serial numbers of one log."""

    def cut(self, inserted_steps: int) -> None:
        """Leaves out what came after so many steps were inserted."""
        kept = [record for record in self.records if record.inserted_steps <= inserted_steps]
        self.cut_off |= len(kept) < len(self.records)
        self.records = kept

    @property
    def damaged_bytes(self) -> int:
        """Bytes that belong to no whole record, the torn tail apart."""
        return sum(count for _, _, count in self.damage)

    @property
    def stored(self) -> list[Record]:
        """Those that the replay held in the end."""
        oldest = self.records[-1].serial - self.records[-1].live + 1 if self.records else 0
        return [record for record in self.records if record.serial >= oldest]

    @property
    def intact(self) -> bool:
        """Whether all that the replay held when the last record was written is here, under numbers without gaps."""
        complete = bool(self.records) and len(self.stored) == self.records[-1].live
        return complete and self.one_log and not (self.missing or self.damage)

    @property
    def whole(self) -> bool:
        """Whether a replay can go on in the same files, with the same serial numbers, as if nothing had happened."""
        return self.intact and self.continuous

    @property
    def continuous(self) -> bool:
        """The same but for whether there is anything to go on from."""
        return self.this_boot and self.one_log and not (self.missing or self.damage or self.cut_off)


def read_journal(folder: Path) -> Contents:
    """Reads what is there; a folder that does not exist holds nothing. Never raises for what a file holds.

    Raises:
        OSError: the folder cannot be read.
    """
    contents = Contents()
    if not folder.is_dir():
        return contents
    paths = sorted(folder.glob("*.segment"))
    for path in paths:
        # Not mapped: a bad sector would then be a signal, not an error.
        try:
            raw = path.read_bytes()
        except OSError as error:
            _log.warning("%s cannot be read, and is left out: %s", path, error)
            raw = b""
            contents.damage.append((path.name, 0, 1))
            contents.unreadable = True
        newest = path == paths[-1]
        contents.records.extend(record for _, record in read_segment(path.name, raw, newest, contents))
    return contents


def read_segment(name: str, view: SegmentBytes, newest: bool, contents: Contents) -> Iterator[tuple[int, Record]]:
    """The whole records of a segment, each with the byte at which it begins.

    Args:
        newest: no segment follows.
        contents: of the segments before it; takes in all but the records themselves.
    """
    head = view[: _SEGMENT.size]
    known = len(head) == _SEGMENT.size and head[:8] == _SEGMENT_MAGIC and _checked(head)
    if known:
        _, log, boot, _ = _SEGMENT.unpack(head)
        contents.one_log &= not contents.segments or log == contents.log
        contents.log, contents.this_boot = log, boot == _boot()
        at = _SEGMENT.size
    else:  # its records tell themselves what they are
        contents.one_log = contents.one_log and newest and not len(view)
        at = 0
    end = len(view)
    unknown_from, records = at, 0
    while at < end:
        record = _record_at(view, at)
        if record is None or (contents.last_serial is not None and record.serial <= contents.last_serial):
            following = view.find(_RECORD_MAGIC, at + 1)
            at = following if following >= 0 else end
            continue
        if at > unknown_from:
            contents.damage.append((name, unknown_from, at - unknown_from))
        if contents.last_serial is not None:
            contents.missing += record.serial - contents.last_serial - 1
        contents.last_serial = record.serial
        records += 1
        yield at, record
        at += _RECORD.size + len(record.payload)
        unknown_from = at
    if newest:
        contents.torn_bytes = end - unknown_from
    elif end > unknown_from:
        contents.damage.append((name, unknown_from, end - unknown_from))
    contents.segments.append((name, records, -1 if contents.last_serial is None else contents.last_serial))


def _record_at(view: SegmentBytes, at: int) -> Record | None:
    head = view[at : at + _RECORD.size]
    if len(head) < _RECORD.size or head[:4] != _RECORD_MAGIC or not _checked(head):
        return None
    _, length, checksum, serial, first_window, inserted, live, _ = _RECORD.unpack(head)
    payload = view[at + _RECORD.size : at + _RECORD.size + length]
    if len(payload) < length or zlib.crc32(payload) != checksum or live < 1:
        return None
    if not all(0 <= number < _MOST for number in (serial, first_window, inserted)):
        return None
    return Record(serial, first_window, inserted, live, payload)


def _checked(head: bytes) -> bool:
    return bool(zlib.crc32(head[: -_CRC.size]) == _CRC.unpack(head[-_CRC.size :])[0])


def _boot() -> bytes:
    """Names the time since the machine was started; on systems that do not tell, another one each time."""
    with contextlib.suppress(OSError, ValueError):
        return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()).bytes
    return uuid.uuid4().bytes


@dataclass(slots=True)
class _Segment:
    name: str
    last_serial: int
    size: int


class Journal:
    """Appends to a journal, and keeps the disk in step. `append` and `evict_before` are called under the replay's lock.

    A disk that is full or broken does not stop the replay: what could not be written is counted, what was written of
    it is taken back, and writing is tried again after a moment. A journal with such a gap is made whole when it is
    next read (`rewritten`).
    """

    def __init__(self, folder: Path, log: int, sync_period_s: float) -> None:
        """
        Args:
            folder: made where it does not exist.
            log: whose serial numbers the records have.
            sync_period_s: what is written reaches the disk so much later at most.

        Raises:
            OSError: the folder cannot be made.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.log = log
        """Whose serial numbers the records have."""
        self._sync_period_s = sync_period_s
        self._segments: deque[_Segment] = deque()
        """Oldest first; the last one is open if `_file` is."""
        self._doomed: deque[_Segment] = deque()
        """Evicted ones, which the thread removes: on some file systems that takes long."""
        self._file: int | None = None
        self._size = self._fragments = 0
        """Of the open one."""
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._retired: list[int] = []
        """Files of older segments that have yet to reach the disk."""
        self._not_before_s = 0.0
        self.missed = 0
        """Fragments that could not be written."""
        self.error = ""
        """Why, the last time; empty once it has worked again."""
        self._complained = ""
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def disk_bytes(self) -> int:
        """On the disk, without the snapshot."""
        return sum(segment.size for segment in [*self._segments, *self._doomed])

    def go_on(self, contents: Contents) -> None:
        """Takes over what is there: the next record begins another segment; a torn tail is cut off.

        Raises:
            OSError: the files cannot be changed.
        """
        for name, records, last_serial in contents.segments:
            path = self.folder / name
            if not records:  # its name may be that of the next one
                path.unlink()
                continue
            if name == contents.segments[-1][0] and contents.torn_bytes:
                os.truncate(path, path.stat().st_size - contents.torn_bytes)
            self._segments.append(_Segment(name, last_serial, path.stat().st_size))
        self.evict_before(contents.stored[0].serial)

    def append(self, record: Record) -> bool:
        """Writes down a fragment that is about to be stored after all others; False if the disk did not take it."""
        if self.error and time.monotonic() < self._not_before_s:
            self.missed += 1
            return False
        head = _RECORD.pack(
            _RECORD_MAGIC,
            len(record.payload),
            zlib.crc32(record.payload),
            record.serial,
            record.first_window,
            record.inserted_steps,
            record.live,
            0,
        )[: -_CRC.size]
        head += _CRC.pack(zlib.crc32(head))
        try:
            if self._file is None or self._fragments >= max(SEGMENT_FRAGMENTS, record.live // SEGMENTS):
                self._begin_segment(record.serial)
            assert self._file is not None
            written = os.writev(self._file, [head, record.payload])
            if written < len(head) + len(record.payload):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._failed(error)
            return False
        self.error = ""
        self._size += written
        self._fragments += 1
        self._segments[-1].size, self._segments[-1].last_serial = self._size, record.serial
        return True

    def evict_before(self, serial: int) -> None:
        """All fragments before this one are gone; segments of such alone are removed with the next `sync`."""
        while self._segments and self._segments[0].last_serial < serial and not self._open(self._segments[0]):
            self._doomed.append(self._segments.popleft())

    def keep(self, snapshot: Callable[[], bytes], period_s: float | None = SNAPSHOT_PERIOD_S) -> None:
        """From now on a thread brings what was written to the disk, and now and then a snapshot (None: never)."""
        self._thread = threading.Thread(target=self._keep, args=(snapshot, period_s), name="journal", daemon=True)
        self._thread.start()

    def write_snapshot(self, snapshot: bytes) -> None:
        """
        Raises:
            OSError: it could not be written; the one before stays.
        """
        write_atomically(self.folder / SNAPSHOT, snapshot)

    def save(self, snapshot: bytes) -> None:
        """Brings a snapshot and all that was written to the disk, as far as it takes them."""
        try:
            self.sync()
            self.write_snapshot(snapshot)
        except OSError as error:
            self._complain(error)

    def sync(self) -> None:
        """Brings what was written to the disk.

        Raises:
            OSError: the disk did not take it.
        """
        with self._syncing:
            self._sync()

    def _sync(self) -> None:
        with self._lock:
            files = [] if self._file is None else [os.dup(self._file)]
            files, self._retired = [*self._retired, *files], []
        try:
            for file in files:
                os.fdatasync(file)
            while self._doomed:  # the oldest first: what is left has no gap
                (self.folder / self._doomed[0].name).unlink(missing_ok=True)
                self._doomed.popleft()
            sync_folder(self.folder)
        finally:
            for file in files:
                os.close(file)

    def close(self) -> None:
        """Ends the thread and closes the files; what was written reaches the disk."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(OSError):
            self.sync()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _begin_segment(self, serial: int) -> None:
        name = f"{serial:020d}.segment"
        file = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        head = _SEGMENT.pack(_SEGMENT_MAGIC, self.log, _boot(), 0)[: -_CRC.size]
        head += _CRC.pack(zlib.crc32(head))
        try:
            if os.write(file, head) < len(head):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.close(file)
            with contextlib.suppress(OSError):
                (self.folder / name).unlink()
            raise
        with self._lock:
            if self._file is not None:
                self._retired.append(self._file)
            self._file, self._size, self._fragments = file, len(head), 0
        self._segments.append(_Segment(name, serial, self._size))

    def _complain(self, error: OSError) -> None:
        if str(error) != self._complained:  # each kind of trouble once, however often it comes
            _log.warning("the replay's journal cannot be written: %s; training goes on without it", error)
        self._complained = str(error)

    def _failed(self, error: OSError) -> None:
        self._complain(error)
        self.error = error.strerror or str(error)
        self.missed += 1
        self._not_before_s = time.monotonic() + RETRY_S
        if self._file is not None:
            try:
                os.ftruncate(self._file, self._size)
            except OSError:  # what lies there is not known any more: the next record begins another segment
                with self._lock:
                    self._retired.append(self._file)
                    self._file = None

    def _open(self, segment: "_Segment") -> bool:
        return self._file is not None and segment is self._segments[-1]

    def _keep(self, snapshot: Callable[[], bytes], period_s: float | None) -> None:
        due_s = time.monotonic() + (period_s or 0.0)
        while not self._stopped.wait(self._sync_period_s):
            if period_s is not None and time.monotonic() >= due_s:
                due_s = time.monotonic() + period_s
                self.save(snapshot())
                continue
            try:
                self.sync()
            except OSError as error:
                self._complain(error)
        if period_s is not None:
            self.save(snapshot())


def owned(folder: Path) -> BinaryIO:
    """A file whose lock says that this process alone writes the journal, until it is closed or the process ends.

    Raises:
        OSError: another process keeps it still, after `OWNED_S`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = open(folder.with_name(folder.name + ".lock"), "wb")  # noqa: SIM115 (held on to)
    deadline = time.monotonic() + OWNED_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return file  # a file system that knows no locks
            if time.monotonic() > deadline:
                file.close()
                raise OSError(errno.EBUSY, "another process keeps this journal; end it, or wait for it") from error
            time.sleep(0.05)  # a process that was killed may still be on its way out


@contextlib.contextmanager
def rewritten(folder: Path) -> Iterator[Path]:
    """A new folder to write a journal into, which takes the place of `folder` when the context ends without an error.

    What is killed in between leaves the old one; `settle` tidies up after it.
    """
    new, old = _beside(folder)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    sync_folder(new)
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def settle(folder: Path) -> None:
    """Ends what a `rewritten` that was killed had begun."""
    new, old = _beside(folder)
    if not folder.exists() and old.exists():
        # Killed between its two renames: the new one was complete by then.
        os.replace(new if new.exists() else old, folder)
    shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _beside(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
