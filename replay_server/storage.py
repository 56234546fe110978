"""Compressed fragments in order of arrival, and the episodes they form."""

from dataclasses import dataclass

import numpy as np

from drqn_dist.codec import FragmentHeader
from drqn_dist.errors import FragmentError
from replay_server.sum_tree import Ints

EpisodeKey = tuple[int, int, int, int]

_LINKS = np.dtype([("first_step", np.int64), ("first_window", np.int64), ("before", np.int64), ("after", np.int64)])
"""Of a fragment: as in `StoredFragment`, and the serial numbers of its neighbours in the episode, -1 where none is
stored."""


def episode_key(header: FragmentHeader, fragment_steps: int) -> EpisodeKey:
    """(actor, env, episode, base) of a fragment, see `FragmentStore`."""
    base = header.sequence_no - header.first_step // fragment_steps
    return header.actor_id, header.env_id, header.episode_id, base


@dataclass(slots=True, eq=False)
class StoredFragment:
    """One fragment; about half a kilobyte beside its payload."""

    payload: bytes
    key: EpisodeKey
    index: int
    """Place in its episode: first_step // configured fragment length."""
    first_step: int
    num_steps: int
    ends_episode: bool
    serial: int
    """Counts fragments in order of arrival."""
    first_window: int
    """Id of the first window that starts in this fragment; the others follow it."""
    num_windows: int
    drawable: tuple[int, int]
    """First id and end (exclusive) of those windows that can be drawn now."""


class FragmentStore:
    """Fragments within bounds of steps and bytes, evicted in order of arrival. Not thread-safe.

    ::

        arrival       serial  oldest ..................................... next     a log: each fragment once, in order
        links         a ring by serial number, so that a draw finds many fragments at once
        episodes      {(actor, env, episode, base): {0: fragment, 1: fragment, 3: fragment}}     (2 has not come yet,
                                                                                                  or is gone)

    `base` is the sequence number of an episode's first fragment: an actor that restarts and counts its episodes from
    0 again never continues an old episode.
    """

    def __init__(self, capacity_steps: int, capacity_bytes: int, fragment_steps: int, first_serial: int = 0) -> None:
        self._capacity_steps = capacity_steps
        self._capacity_bytes = capacity_bytes
        self._fragment_steps = fragment_steps
        self._fragments: dict[int, StoredFragment] = {}
        self._episodes: dict[EpisodeKey, dict[int, StoredFragment]] = {}
        self._links = np.zeros(1024, _LINKS)
        self._oldest = first_serial
        self._next = first_serial
        self.steps = 0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._fragments)

    def __getitem__(self, serial: int) -> StoredFragment:
        return self._fragments[serial]

    @property
    def oldest_serial(self) -> int:
        """The serial number of the fragment that goes next."""
        return self._oldest

    @property
    def next_serial(self) -> int:
        """The serial number that the next fragment gets."""
        return self._next

    def episode(self, fragment: StoredFragment) -> dict[int, StoredFragment]:
        """The stored fragments of its episode by index; empty when all are gone."""
        return self._episodes.get(fragment.key, {})

    def check_fits(self, header: FragmentHeader, payload_bytes: int) -> None:
        """
        Raises:
            FragmentError: the fragment contradicts the fragments before or after it, or exceeds the whole capacity.
        """
        if payload_bytes > self._capacity_bytes:
            raise FragmentError(
                f"fragment of {payload_bytes:,} bytes exceeds replay.capacity_bytes ({self._capacity_bytes:,})"
            )
        index = header.first_step // self._fragment_steps
        episode = self._episodes.get(episode_key(header, self._fragment_steps), {})
        before = episode.get(index - 1)
        if (before and before.ends_episode) or (header.ends_episode and index + 1 in episode) or index in episode:
            raise FragmentError(
                f"steps {header.first_step}..{header.first_step + header.num_steps - 1} of episode "
                f"{header.episode_id} of actor {header.actor_id}, environment {header.env_id} contradict what is "
                "stored of it: it ends elsewhere, or these steps came before under another sequence number"
            )

    def has_room(self, num_steps: int, payload_bytes: int) -> bool:
        """Whether so much more fits without eviction."""
        return self.steps + num_steps <= self._capacity_steps and self.bytes + payload_bytes <= self._capacity_bytes

    def add(self, payload: bytes, header: FragmentHeader, first_window: int, num_windows: int) -> StoredFragment:
        """Stores a fragment; the caller has made sure of `check_fits` and `has_room`."""
        fragment = StoredFragment(
            payload=payload,
            key=episode_key(header, self._fragment_steps),
            index=header.first_step // self._fragment_steps,
            first_step=header.first_step,
            num_steps=header.num_steps,
            ends_episode=header.ends_episode,
            serial=self._next,
            first_window=first_window,
            num_windows=num_windows,
            drawable=(first_window, first_window),
        )
        if len(self._fragments) == len(self._links):
            self._grow()
        self._fragments[self._next] = fragment
        episode = self._episodes.setdefault(fragment.key, {})
        episode[fragment.index] = fragment
        before, after = (self._serial_of(episode, fragment.index + side) for side in (-1, 1))
        self._links[self._next % len(self._links)] = (fragment.first_step, first_window, before, after)
        self._link(before, "after", fragment.serial)
        self._link(after, "before", fragment.serial)
        self._next += 1
        self._account(fragment, 1)
        return fragment

    def pop_oldest(self) -> StoredFragment:
        """Removes the fragment that arrived first."""
        fragment = self._fragments.pop(self._oldest)
        self._oldest += 1
        episode = self._episodes[fragment.key]
        del episode[fragment.index]
        self._link(self._serial_of(episode, fragment.index - 1), "after", -1)
        self._link(self._serial_of(episode, fragment.index + 1), "before", -1)
        if not episode:
            del self._episodes[fragment.key]
        self._account(fragment, -1)
        return fragment

    def window_starts(self, serials: Ints, windows: Ints, stride: int) -> Ints:
        """Episode steps int64 [N] at which windows int64 [N], owned by these fragments int64 [N], begin to train."""
        links = self._links[serials % len(self._links)]
        starts: Ints = links["first_step"] + (windows - links["first_window"]) * stride
        return starts

    def chains(self, serials: Ints, first: Ints, end: Ints, most: int) -> Ints:
        """Of N windows, the fragments that hold the episode's steps first … end - 1, or those of them before its end.

        Args:
            serials: int64 [N], a stored fragment of each window's episode in which a step of the window lies.
            first, end: int64 [N], episode steps; all fragments from `first` on are stored.
            most: C, the most fragments that a window reads.

        Returns:
            int64 [N, C] serial numbers in episode order, then -1.
        """
        size, length = len(self._links), self._fragment_steps
        chains = np.full((len(serials), most), -1)
        current = serials
        back = self._links["first_step"][current % size] // length - first // length
        for hop in range(int(back.max(initial=0))):
            current = np.where(back > hop, self._links["before"][current % size], current)
        chains[:, 0] = current
        ahead = (end - 1) // length - first // length
        for hop in range(1, most):
            reads = (ahead >= hop) & (current >= 0)
            current = np.where(reads, self._links["after"][current % size], -1)
            chains[:, hop] = current
        return chains

    def run_around(self, fragment: StoredFragment, back: int, ahead: int) -> tuple[int, int, bool]:
        """The unbroken run of steps that holds a fragment and at most `back` and `ahead` neighbours.

        Returns:
            The run's first episode step, the step after its last one, and whether the episode ends there.
        """
        episode = self._episodes[fragment.key]
        first = fragment.index
        while first - 1 in episode and fragment.index - first < back:
            first -= 1
        last = fragment.index
        while last + 1 in episode and last - fragment.index < ahead:
            last += 1
        end = episode[last]
        return episode[first].first_step, end.first_step + end.num_steps, end.ends_episode

    @staticmethod
    def _serial_of(episode: dict[int, StoredFragment], index: int) -> int:
        fragment = episode.get(index)
        return -1 if fragment is None else fragment.serial

    def _link(self, serial: int, side: str, neighbour: int) -> None:
        if serial >= 0:
            self._links[side][serial % len(self._links)] = neighbour

    def _grow(self) -> None:
        serials = np.arange(self._oldest, self._next)
        links = np.zeros(2 * len(self._links), _LINKS)
        links[serials % len(links)] = self._links[serials % len(self._links)]
        self._links = links

    def _account(self, fragment: StoredFragment, sign: int) -> None:
        self.steps += sign * fragment.num_steps
        self.bytes += sign * len(fragment.payload)
