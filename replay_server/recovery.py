"""What a replay that is started again takes back from its journal: read and decided before anything is stored."""

import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from drqn_dist.codec import FragmentHeader
from drqn_dist.errors import FragmentError
from replay_server.journal import SNAPSHOT, Journal, settle
from replay_server.sampler import ID_STRIDE
from replay_server.segments import Contents, Record, read_journal
from replay_server.snapshot import Snapshot, read_snapshot


class Saved(NamedTuple):
    """Where a replay's counters stood when its state was saved; all at 0 where none was."""

    inserted_steps: int = 0
    sampled_steps: int = 0
    filled_steps: int = 0
    next_window: int = 0

    @classmethod
    def of(cls, state: Mapping[str, Any] | None) -> "Saved":
        """Of what `Replay.get_state` returned."""
        if state is None:
            return cls()
        limiter, sampler = state["limiter"], state["sampler"]
        inserted, sampled, filled = (int(limiter[name]) for name in ("inserted_steps", "sampled_steps", "filled_steps"))
        return cls(inserted, sampled, filled, int(sampler["next_id"]))

    @property
    def stamp(self) -> tuple[int, int]:
        """Of a snapshot of the same moment."""
        return self.inserted_steps, self.sampled_steps


@dataclass(frozen=True)
class Recovery:
    """What a replay takes back, and how it goes on."""

    fragments: list[tuple[Record, FragmentHeader]]
    """In order of arrival: those that were stored in the end and that the replay's configuration takes."""
    begin_at: tuple[int, int] | None
    """Serial number of the first of them from now on, and id of its first window; None where nothing is taken back."""
    filled_steps: int
    """Steps that the replay was filled with, at least."""
    snapshot: Snapshot
    """Of windows by their ids in the records."""
    journal: Journal | None
    """It goes on in the files that are there; None: one must be written anew, unless there is a problem."""
    problem: str
    """Why no journal can be kept; empty without any."""
    contents: Contents
    lacking: str
    """Why a run that goes back to its checkpoint is not bit for bit as it was then; empty without a reason."""
    unread: str = ""
    """What could not be read though it is there, and is done without; empty if all was."""

    @property
    def inserted_steps(self) -> int:
        """Steps that had been inserted with the last one of the fragments."""
        return self.fragments[-1][0].inserted_steps if self.fragments else 0

    def note(self, steps: int, fragments: int, seconds: float) -> str:
        """What there is to say, once so many are stored again after so long; empty where nothing was there."""
        contents, parts = self.contents, []
        if contents.records:
            taken = f"{steps:,} steps ({fragments:,} fragments)"
            parts.append(f"took back {taken} from its journal in {seconds:.1f} s")
            if contents.missing or contents.damaged_bytes:
                damaged = f"{contents.damaged_bytes:,} damaged bytes"
                parts.append(f"{damaged} and {contents.missing:,} missing fragments were left out")
            if contents.torn_bytes:
                parts.append(f"{contents.torn_bytes:,} bytes at its end were still being written")
            if (refused := len(contents.stored) - len(self.fragments)) > 0:
                parts.append(f"{refused:,} fragments do not fit this configuration, or are there twice")
            if self.unread:
                parts.append(self.unread)
        if self.lacking:
            parts = parts or ["begins anew"]
            parts.append(f"{self.lacking}, so that this run will not be bit for bit as if it had not stopped")
        return "; ".join(parts)


def recover(
    folder: Path,
    saved: Saved,
    exact: bool,
    header_of: Callable[[bytes], FragmentHeader],
    scale: str,
    sync_period_s: float,
) -> Recovery:
    """Reads a journal, which this process alone may write (`owned`), and decides what becomes of it.

    ::

                                        all is there, and fits        something is damaged, or does not fit
        same boot                       same numbers, same files      new numbers, written anew
        another boot                    new numbers, written anew     new numbers, written anew
        exact: cut, or another boot     same numbers, written anew    new numbers, written anew

    Fragments and windows keep their numbers, which a learner and priorities on their way know, or they get such as
    never were: the disk of a machine that was started again may lack what a learner elsewhere has drawn. Who goes back
    with the replay is alone in knowing numbers of after its checkpoint.

    Args:
        exact: what is newer than `saved` is left out.
        header_of: decodes a fragment's header; raises FragmentError where the replay's configuration does not take it.
        scale: what the replay's weights are; a snapshot on another scale is not used.
        sync_period_s: of the journal.

    Raises:
        OSError: the folder cannot be read.
    """
    settle(folder)
    contents, unread = read_journal(folder), ""
    try:
        snapshot = read_snapshot(folder / SNAPSHOT)
    except OSError as error:  # fragments are worth more than their priorities
        snapshot, unread = Snapshot(), f"its priorities could not be read ({error.strerror or error})"
    if exact:
        contents.cut(saved.inserted_steps)
    fragments = list(_fitting(contents.stored, header_of))
    complete = contents.intact and len(fragments) == len(contents.stored)
    if complete and not exact:  # ids that a full disk did not note are not given out again
        last, header = fragments[-1]
        complete = saved.next_window <= last.first_window + len(header.priorities)
    # Before anything gets its old number: if the files cannot be gone on with, it gets a new one.
    journal, problem = _gone_on(folder, contents, complete, sync_period_s)
    same_numbers = complete and (exact or journal is not None)
    begin_at = None
    if fragments:
        first, last = fragments[0][0], contents.records[-1]
        new = last.serial + 1, max(saved.next_window, last.first_window) + ID_STRIDE
        begin_at = (first.serial, first.first_window) if same_numbers else new
    lacking = _lacking(contents, saved, snapshot) if exact else ""
    if snapshot.scale != scale or (exact and snapshot.stamp != saved.stamp):  # of another scale, or another moment
        snapshot = Snapshot(seen={} if exact else snapshot.seen)
    filled_steps = saved.filled_steps if same_numbers else 0
    return Recovery(fragments, begin_at, filled_steps, snapshot, journal, problem, contents, lacking, unread)


def no_journal(folder: Path, error: OSError) -> str:
    """What is said where a journal cannot be read or written."""
    return f"keeps no journal in {folder}: {error.strerror or error}"


def _fitting(
    records: Sequence[Record], header_of: Callable[[bytes], FragmentHeader]
) -> Iterator[tuple[Record, FragmentHeader]]:
    """Each fragment once, though two processes may have written one journal where files cannot be locked."""
    seen = set[tuple[int, int, int]]()
    for record in records:
        with contextlib.suppress(FragmentError):
            header = header_of(record.payload)
            key = header.actor_id, header.env_id, header.sequence_no
            if key not in seen:
                seen.add(key)
                yield record, header


def _gone_on(folder: Path, contents: Contents, complete: bool, sync_period_s: float) -> tuple[Journal | None, str]:
    """The journal that goes on in the files that are there, if that can be; otherwise also why none can be kept."""
    if contents.unreadable:
        return None, no_journal(folder, OSError(errno.EIO, "a file of it could not be read, and is kept"))
    if not (complete and contents.whole):
        return None, ""
    try:
        journal = Journal(folder, contents.log, sync_period_s)
        journal.go_on(contents)
    except OSError as error:
        return None, no_journal(folder, error)
    return journal, ""


def _lacking(contents: Contents, saved: Saved, snapshot: Snapshot) -> str:
    """What a journal, cut to that moment, does not have of what the replay held then."""
    found = contents.records[-1].inserted_steps if contents.records else 0
    if found < saved.inserted_steps:
        return f"the last {saved.inserted_steps - found:,} steps that had been inserted are not in it"
    if not contents.records:
        return ""
    if (lost := contents.records[-1].live - len(contents.stored)) > 0:
        return f"{lost:,} fragments that were stored then are not in it"
    return "" if snapshot.stamp == saved.stamp else "it has priorities of another moment"
