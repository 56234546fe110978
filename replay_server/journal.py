"""The replay's journal: every stored fragment, as it was received, in files that a restarted replay reads back.

::

    <folder>/
        00000000000000000000.segment      fragments, oldest first; named by the serial number of the first one
        00000000000000004096.segment      the newest is appended to
        priorities.safetensors            now and then: the priorities of all windows (see snapshot.py)

How segments are packed and read: segments.py.

A record is written before the replay stores its fragment, so nothing that was acknowledged or drawn is lost with the
process. What reaches the disk itself is settled by a thread every `sync_period_s`: a machine that loses power loses at
most what came in since. Segments go whole, once all their fragments are evicted.
"""

import contextlib
import errno
import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from drqn_dist.files import locked, sync_folder, write_atomically
from replay_server.segments import Contents, Record, pack_record_head, pack_segment_head, segment_name

SNAPSHOT = "priorities.safetensors"
SNAPSHOT_PERIOD_S = 10.0
SEGMENTS = 16
"""A full replay's journal has about so many, so that about a sixteenth more than what is stored lies on the disk."""
SEGMENT_FRAGMENTS = 64
"""Of the smallest segment."""
SEGMENTS_WAITING = 64
"""Segments that may wait for the disk, each an open file, however long the period is."""
OWNED_S = 10.0
"""A process that ends lets go of its journal within this time."""
RETRY_S = 1.0
"""After a write that failed (a full disk), the next one is tried so much later."""

_log = logging.getLogger(__name__)


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
        self._complained: set[str] = set()
        self._stopped, self._due = threading.Event(), threading.Event()
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
        head = pack_record_head(record)
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
        failed: OSError | None = None
        try:
            for file in files:
                try:
                    os.fdatasync(file)
                except OSError as error:  # where that says that the disk is full, removing is what helps
                    failed = error
            while self._doomed:  # the oldest first: what is left has no gap
                (self.folder / self._doomed[0].name).unlink(missing_ok=True)
                self._doomed.popleft()
            sync_folder(self.folder)
        finally:
            for file in files:
                os.close(file)
        if failed is not None:
            raise failed

    def close(self) -> None:
        """Ends the thread and closes the files; what was written reaches the disk."""
        self._stopped.set()
        self._due.set()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(OSError):
            self.sync()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _begin_segment(self, serial: int) -> None:
        name = segment_name(serial)
        file = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        head = pack_segment_head(self.log)
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
            if len(self._retired) > SEGMENTS_WAITING:
                self._due.set()
        self._segments.append(_Segment(name, serial, self._size))

    def _complain(self, error: Exception) -> None:
        kind = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if kind not in self._complained:  # each kind of trouble once, however often it comes
            _log.warning("the replay's journal cannot be written: %s; training goes on without it", error)
        self._complained.add(kind)

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
        while not self._stopped.is_set():
            self._due.wait(self._sync_period_s)
            self._due.clear()
            ends = self._stopped.is_set()
            try:
                if period_s is not None and (ends or time.monotonic() >= due_s):
                    due_s = time.monotonic() + period_s
                    self.save(snapshot())
                else:
                    self.sync()
            except Exception as error:  # memory that ran out, say: without this thread nothing is evicted any more
                self._complain(error)
                with contextlib.suppress(OSError):
                    self.sync()


def owned(folder: Path) -> BinaryIO:
    """A file whose lock says that this process alone writes the journal, until it is closed or the process ends.

    Raises:
        OSError: another process keeps it still, after `OWNED_S`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        return locked(folder.with_name(folder.name + ".lock"), OWNED_S)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise OSError(errno.EBUSY, "another process keeps this journal; end it, or wait for it") from error
        raise


@contextlib.contextmanager
def rewritten(folder: Path) -> Iterator[Path]:
    """A new folder to write a journal into, which takes the place of `folder` when the context ends without an error.

    What is killed in between leaves the old one; `settle` tidies up after it, and was called before.
    """
    new, old = _beside(folder)
    new.mkdir()
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


def write_anew(folder: Path, log: int, sync_period_s: float, records: Iterable[Record], snapshot: bytes) -> Journal:
    """A journal of these records alone, in place of what was there.

    Raises:
        OSError: the disk did not take it; what was there stays.
    """
    with rewritten(folder) as new:
        journal = Journal(new, log, sync_period_s)
        try:
            for record in records:
                if not journal.append(record):
                    raise OSError(errno.ENOSPC, f"it could not be written anew: {journal.error}")
            journal.write_snapshot(snapshot)
            journal.sync()
        except OSError:
            journal.close()
            raise
    journal.folder = folder
    return journal


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
