"""Whether the journals of a run are whole: every byte is read, every fragment decoded, every joint compared."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from drqn_dist.codec import decode
from drqn_dist.config import TrainConfig
from drqn_dist.errors import FragmentError
from drqn_dist.experiments.replay_read import Entry, Place, ShardJournal, entry_of, open_journals
from drqn_dist.experiments.run_folder import open_run
from drqn_dist.fragment import Observations
from replay_server.seen import FRESH_BASE, SeenNumbers
from replay_server.segments import Record

Say = Callable[[str], None]
EnvKey = tuple[int, int]
"""Actor and environment."""


class Verdict(NamedTuple):
    """What was found."""

    faults: int
    fragments: int
    """That could be decoded, evicted ones among them."""
    steps: int


def verify_replay(run: Path, say: Say, progress: Callable[[int, int], object] = lambda done, total: None) -> Verdict:
    """Reads a run's journals in whole; changes nothing.

    A torn tail and fragments that were on their way when a process died are no faults, but said.

    Args:
        run: the run's folder; the run may be going on.
        say: hears a line for each fault (`fault: …`) and for what else is to be known.
        progress: hears how many bytes were read, and of how many.

    Raises:
        RunFolderError: it is no run, has no journal, or that cannot be read.
    """
    folder = open_run(run)
    verdicts = []
    with open_journals(folder) as journals:
        total, done = sum(journal.num_bytes for journal in journals), 0
        for journal in journals:
            check = _ShardCheck(journal, folder.config, say)
            for num_bytes in check.records():
                done += num_bytes
                progress(done, total)
            check.conclude()
            verdicts.append((check.faults, check.fragments, check.steps))
    return Verdict(*map(sum, zip(*verdicts, strict=True)))


class _Piece(NamedTuple):
    """What is kept of a fragment to compare it with its neighbours."""

    place: Place
    episode_id: int
    part: int
    """Place in its episode."""
    ends: bool
    first: bytes
    """Digest of its first observation."""
    last: bytes
    """Of the one after its last step."""
    first_window: int


class _Reached(NamedTuple):
    """Where the counters stand after a record."""

    serial: int
    next_window: int | None
    """None after a fragment that cannot be read."""
    inserted_steps: int
    live: int


@dataclass
class _ShardCheck:
    """Checks the journal of one shard: iterate `records`, then `conclude`."""

    journal: ShardJournal
    config: TrainConfig
    say: Say
    faults: int = 0
    fragments: int = 0
    steps: int = 0
    unreadable: int = 0
    reached: _Reached | None = None
    first_serial: int = 0
    cost: dict[int, str] = field(default_factory=dict)
    """What each place of damage cost, by its index."""
    last: tuple[str, int] = ("", 0)
    """Segment of the last record, and places of damage up to it."""
    pieces: dict[EnvKey, dict[int, _Piece]] = field(default_factory=dict)
    """By sequence number."""
    observations: str = ""

    def records(self) -> Iterator[int]:
        """Checks a record at a time, and tells its bytes."""
        for place, record in self.journal.records():
            entry = self._read(place, record)
            if self.reached is None:
                self.first_serial = record.serial
            else:
                self._compare(place, record, entry, self.reached)
            next_window = None if entry is None else entry.first_window + entry.num_windows
            self.reached = _Reached(record.serial, next_window, record.inserted_steps, record.live)
            self.last = (place.segment.name, len(self.journal.contents.damage))
            yield len(record.payload)

    def conclude(self) -> None:
        """Checks what only all records together tell."""
        self._check_files()
        self._check_numbers()
        self._check_snapshot()

    def _fault(self, where: Place | str, what: str) -> None:
        self.faults += 1
        self.say(f"fault: {where}: {what}")

    def _read(self, place: Place, record: Record) -> Entry | None:
        limit = self.config.replay.max_fragment_bytes
        try:
            entry = entry_of(place, record, limit, self.config.window)
            fragment = decode(record.payload, limit)
        except FragmentError as error:
            self.unreadable += 1
            self._fault(place, str(error))
            return None
        self.fragments += 1
        self.steps += fragment.num_steps
        observations = f"{entry.header.observation_type} {list(entry.header.observation_shape)}"
        self.observations = self.observations or observations
        if observations != self.observations:
            self._fault(place, f"its observations are {observations}, but {self.observations} in those before")
        piece = _Piece(
            place,
            fragment.episode_id,
            fragment.first_step // self.config.window.fragment,
            fragment.ends_episode,
            _digest(fragment.observations[0]),
            _digest(fragment.observations[-1]),
            record.first_window,
        )
        self._join((fragment.actor_id, fragment.env_id), fragment.sequence_no, piece)
        return entry

    def _join(self, key: EnvKey, number: int, piece: _Piece) -> None:
        """Compares a fragment with its neighbours in the stream of its environment, as far as they came before it."""
        stream = self.pieces.setdefault(key, {})
        if number in stream:
            self._fault(piece.place, f"{_name(key, number)} is there twice, first in {stream[number].place}")
            return
        stream[number] = piece
        for before, after in ((number - 1, number), (number, number + 1)):
            if before in stream and after in stream and (wrong := _contradiction(stream[before], stream[after])):
                self._fault(
                    piece.place, f"{_name(key, after)} does not follow {before} ({stream[before].place}): {wrong}"
                )

    def _compare(self, place: Place, record: Record, entry: Entry | None, reached: _Reached) -> None:
        """Serial numbers rise by the way that records are read; what counts along with them must keep pace."""
        came = record.serial - reached.serial
        if came > 1:
            lost = f"the fragments of serial numbers {reached.serial + 1} to {record.serial - 1}"
            segment, damages = self.last
            # Within a segment it is one fault; between two of them a whole one may be gone as well.
            if segment == place.segment.name and len(self.journal.contents.damage) > damages:
                self.cost[damages] = f", and with them {lost}"
            else:
                self._fault(place, f"{lost} are missing")
        if reached.next_window is not None:
            skips = came == 1 and record.first_window > reached.next_window
            if record.first_window < reached.next_window or skips:
                self._fault(place, f"its first window is {record.first_window}, but must be {reached.next_window}")
        steps = 0 if entry is None else entry.header.num_steps
        if record.inserted_steps < reached.inserted_steps + steps:
            self._fault(
                place,
                f"{record.inserted_steps} steps were inserted with its {steps}, {reached.inserted_steps} before it",
            )
        if record.live > reached.live + came:
            self._fault(place, f"{record.live} fragments are stored with it, but {reached.live} were before it")

    def _check_files(self) -> None:
        contents, name = self.journal.contents, self.journal.name
        for index, (segment, at, num_bytes) in enumerate(contents.damage):
            cost = self.cost.get(index, "")
            self._fault(f"{name}/{segment}", f"{num_bytes:,} bytes from byte {at:,} on are damaged{cost}")
        if not contents.one_log:
            self._fault(name, "its segments are of several logs, or one's head is damaged")
        if self.reached is None:
            self.say(f"note: {name}: holds no fragment")
        elif (lost := self.reached.live - (self.reached.serial + 1 - self.first_serial)) > 0:
            self._fault(name, f"the oldest {lost:,} of {self.reached.live:,} stored fragments are not on the disk")
        if contents.torn_bytes:
            segment = contents.segments[-1][0]
            self.say(
                f"note: {name}/{segment}: {contents.torn_bytes:,} bytes at its end were being written when the process "
                "died, or are now; the next start cuts them off"
            )

    def _check_numbers(self) -> None:
        """Looks for fragments that others overtook: within what an actor may have had on its way at the end, or when
        what lies before the journal was evicted, they may be lacking."""
        in_flight = self.config.actor.max_pushes_in_flight
        lacking, excused = [], 0
        for key, stream in self.pieces.items():
            for first, last, gaps in _runs(sorted(stream)):
                # An incarnation's numbers begin at a multiple of 2 ** 32.
                evicted = first % (2 * FRESH_BASE) > 0
                for before, after in gaps:
                    # Counted without a loop: what a file says may be a gap of billions.
                    late = max(0, after - max(before + 1, last - in_flight))
                    early = max(0, min(after - 1, first + in_flight) - before) if evicted else 0
                    excused += min(after - before - 1, late + early)
                    if late + early < after - before - 1:
                        lacking.append((key, before, after))
        # What the serial numbers or an unreadable record told already is not told again.
        if sum(after - before - 1 for _, before, after in lacking) > self.journal.contents.missing + self.unreadable:
            for key, before, after in lacking:
                which = f"{before + 1}" if after == before + 2 else f"{before + 1} to {after - 1}"
                self._fault(self.pieces[key][after].place, f"{_name(key, which)} before it never came")
        if excused:
            self.say(
                f"note: {self.journal.name}: {excused:,} fragments that later ones overtook are not there: evicted, on "
                "their way, or lost with an actor"
            )

    def _check_snapshot(self) -> None:
        name, snapshot = f"{self.journal.name}/priorities", self.journal.snapshot
        if self.journal.snapshot_fault:
            self._fault(name, f"the snapshot is damaged: {self.journal.snapshot_fault}")
        if self.journal.snapshot_note:
            self.say(f"note: {name} are left out by a restart: {self.journal.snapshot_note}")
        if snapshot is None or self.reached is None:
            return
        first, end = snapshot.first_window, snapshot.first_window + len(snapshot.weights)
        known = {piece.first_window: piece for stream in self.pieces.values() for piece in stream.values()}
        last = self.reached.next_window
        if last is not None and len(snapshot.weights) and end > last:
            self._fault(name, f"it knows windows up to {end - 1}, but the journal's last one is {last - 1}")
        if not self.unreadable and known and min(known) <= first < end <= (last or 0) and first not in known:
            self._fault(name, f"it begins with window {first}, with which no fragment begins")
        for key, stream in self.pieces.items():
            seen = SeenNumbers(snapshot.seen.get(key, ()))
            for number, piece in stream.items():
                if piece.first_window < end and number not in seen:
                    self._fault(name, f"it has not seen {_name(key, number)} ({piece.place})")


def _contradiction(before: _Piece, after: _Piece) -> str:
    """Why two fragments of neighbouring numbers cannot be so; empty where they can."""
    if after.part == 0:
        return "" if after.episode_id > before.episode_id else f"episode {after.episode_id} after {before.episode_id}"
    if after.episode_id != before.episode_id or after.part != before.part + 1:
        return (
            f"it is part {after.part} of episode {after.episode_id}, that one part {before.part} of episode "
            f"{before.episode_id}"
        )
    if before.ends:
        return f"episode {before.episode_id} has ended there"
    if before.last != after.first:
        return "its first observation is not the last one there"
    return ""


def _runs(numbers: list[int]) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """First and last number of each incarnation, and the numbers around each gap within it."""
    first = numbers[0]
    gaps: list[tuple[int, int]] = []
    for before, after in pairwise(numbers):
        if after - before >= FRESH_BASE:
            yield first, before, gaps
            first, gaps = after, []
        elif after > before + 1:
            gaps.append((before, after))
    yield first, numbers[-1], gaps


def _name(key: EnvKey, number: int | str) -> str:
    return f"fragment {number} of actor {key[0]}, environment {key[1]}"


def _digest(observation: Observations) -> bytes:
    return hashlib.blake2b(observation.tobytes(), digest_size=16).digest()
