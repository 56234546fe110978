"""Compressed fragments in order of arrival, and the episodes they form."""

from __future__ import annotations

from dataclasses import dataclass

from drqn_dist.codec import FragmentHeader
from drqn_dist.errors import FragmentError

EpisodeKey = tuple[int, int, int, int]


@dataclass(slots=True, eq=False)
class StoredFragment:
    """One fragment; about half a kilobyte beside its payload."""

    payload: bytes
    key: EpisodeKey
    index: int
    """Place in its episode: first_step // configured fragment length."""
    first_step: int
    num_steps: int
    num_observations: int
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

        arrival       serial  oldest ..................................... next
        episodes      {(actor, env, episode, base): {0: fragment, 1: fragment, 3: fragment}}     (2 has not come yet,
                                                                                                  or is gone)

    `base` is the sequence number of an episode's first fragment: an actor that restarts and counts its episodes from
    0 again never continues an old episode.
    """

    def __init__(self, capacity_steps: int, capacity_bytes: int, fragment_steps: int) -> None:
        self._capacity_steps = capacity_steps
        self._capacity_bytes = capacity_bytes
        self._fragment_steps = fragment_steps
        self._fragments: dict[int, StoredFragment] = {}
        self._episodes: dict[EpisodeKey, dict[int, StoredFragment]] = {}
        self._oldest = 0
        self._next = 0
        self.steps = 0
        self.bytes = 0
        self.observations = 0

    def __len__(self) -> int:
        return len(self._fragments)

    def __getitem__(self, serial: int) -> StoredFragment:
        return self._fragments[serial]

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
        episode = self._episodes.get(self._key(header), {})
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
            key=self._key(header),
            index=header.first_step // self._fragment_steps,
            first_step=header.first_step,
            num_steps=header.num_steps,
            num_observations=header.num_observations,
            ends_episode=header.ends_episode,
            serial=self._next,
            first_window=first_window,
            num_windows=num_windows,
            drawable=(first_window, first_window),
        )
        self._fragments[self._next] = fragment
        self._episodes.setdefault(fragment.key, {})[fragment.index] = fragment
        self._next += 1
        self._account(fragment, 1)
        return fragment

    def pop_oldest(self) -> StoredFragment:
        """Removes the fragment that arrived first."""
        fragment = self._fragments.pop(self._oldest)
        self._oldest += 1
        episode = self._episodes[fragment.key]
        del episode[fragment.index]
        if not episode:
            del self._episodes[fragment.key]
        self._account(fragment, -1)
        return fragment

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

    def check_valid(self) -> None:
        """Raises AssertionError unless totals, bounds and episodes agree with the fragments."""
        stored = list(self._fragments.values())
        assert list(self._fragments) == list(range(self._oldest, self._next)), "store: serials are not contiguous"
        assert self.steps == sum(f.num_steps for f in stored) <= self._capacity_steps, "store: steps"
        assert self.bytes == sum(len(f.payload) for f in stored) <= self._capacity_bytes, "store: bytes"
        assert self.observations == sum(f.num_observations for f in stored), "store: observations"
        in_episodes = [f.serial for episode in self._episodes.values() for f in episode.values()]
        assert sorted(in_episodes) == list(self._fragments), "store: episodes and fragments differ"

    def _account(self, fragment: StoredFragment, sign: int) -> None:
        self.steps += sign * fragment.num_steps
        self.bytes += sign * len(fragment.payload)
        self.observations += sign * fragment.num_observations

    def _key(self, header: FragmentHeader) -> EpisodeKey:
        base = header.sequence_no - header.first_step // self._fragment_steps
        return header.actor_id, header.env_id, header.episode_id, base
