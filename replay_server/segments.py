"""The format of a replay's journal: what its segments hold, how that is packed, and how it is read back.

::

    segment   | header | record | record | ...      a file, named by the serial number of its first record

    header    | magic  | log     | boot     | crc32  |      log: whose serial numbers these are
                8 bytes  int64     16 bytes   uint32        boot: of the machine since it was started
    record    | magic  | length | crc32   | serial, first_window, inserted | live   | crc32   | payload |
                4 bytes  uint32   uint32    int64 each                       uint32   uint32    length bytes
                                  of the payload                                      of all before it

`inserted` counts the agent steps of the whole run up to and with this fragment, `live` the fragments stored then: where
the journal ends is also known what had been evicted. Numbers are little-endian.

Reading never trusts a length: it stops at a torn tail, and where a record is damaged goes on at the next whole one.
"""

import contextlib
import logging
import struct
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

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


def segment_name(first_serial: int) -> str:
    """Of the file whose first record has this serial number."""
    return f"{first_serial:020d}.segment"


def segment_paths(folder: Path) -> list[Path]:
    """The segments that lie in a folder, oldest first."""
    return sorted(folder.glob("*.segment"))


def pack_segment_head(log: int) -> bytes:
    """What a segment of this log begins with: 36 bytes."""
    return _sealed(_SEGMENT.pack(_SEGMENT_MAGIC, log, _boot(), 0))


def pack_record_head(record: Record) -> bytes:
    """What stands before a record's payload: `RECORD_HEAD_BYTES` bytes."""
    length, checksum = len(record.payload), zlib.crc32(record.payload)
    numbers = (record.serial, record.first_window, record.inserted_steps, record.live)
    return _sealed(_RECORD.pack(_RECORD_MAGIC, length, checksum, *numbers, 0))


def read_journal(folder: Path) -> Contents:
    """Reads what is there; a folder that does not exist holds nothing. Never raises for what a file holds.

    Raises:
        OSError: the folder cannot be read.
    """
    contents = Contents()
    if not folder.is_dir():
        return contents
    paths = segment_paths(folder)
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


def _sealed(head: bytes) -> bytes:
    """The same with the checksum of all that comes before it in its last bytes."""
    content = head[: -_CRC.size]
    return content + _CRC.pack(zlib.crc32(content))


def _checked(head: bytes) -> bool:
    return bool(zlib.crc32(head[: -_CRC.size]) == _CRC.unpack(head[-_CRC.size :])[0])


def _boot() -> bytes:
    """Names the time since the machine was started; on systems that do not tell, another one each time."""
    with contextlib.suppress(OSError, ValueError):
        return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()).bytes
    return uuid.uuid4().bytes
