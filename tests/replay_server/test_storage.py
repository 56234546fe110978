"""Chains of fragments against a plain dictionary of episodes."""

from __future__ import annotations

import numpy as np

from drqn_dist.codec import decode_header
from drqn_dist.config import WindowShape
from replay_server.storage import FragmentStore
from tests.replay_server.fragments import Piece, cut_episode
from tests.replay_server.validity import check_store

LENGTH = 2
SHAPE = WindowShape(burn_in=2, unroll=2, n_step=1, stride=2, fragment=LENGTH, history=0)
Stored = dict[tuple[tuple[int, int, int], int], int]
"""Serial number by episode and place in it."""


class Twin:
    """The store, and beside it a dictionary that says what it should hold."""

    def __init__(self, first_serial: int = 0, capacity_steps: int = 10**6) -> None:
        self.store = FragmentStore(capacity_steps, 2**40, LENGTH, first_serial)
        self.pieces: dict[int, Piece] = {}
        self._windows = 0

    def add(self, piece: Piece) -> None:
        header = decode_header(piece.payload, 2**20)
        while not self.store.has_room(piece.num_steps, len(piece.payload)):
            self.drop_oldest()
        self.pieces[self.store.next_serial] = piece
        self.store.add(piece.payload, header, self._windows, 1)
        self._windows += 1

    def drop_oldest(self) -> None:
        del self.pieces[self.store.pop_oldest().serial]

    def serials(self) -> Stored:
        return {(piece.episode, piece.first_step // LENGTH): serial for serial, piece in self.pieces.items()}

    def check_chains(self, rng: np.random.Generator, count: int, most: int) -> None:
        """Chains of random windows that read only what is stored, from any fragment of the window."""
        serials = self.serials()
        owners, firsts, ends, wanted = [], [], [], []
        while len(owners) < count:
            owner = int(rng.choice(list(self.pieces)))
            episode, at = self.pieces[owner].episode, self.pieces[owner].first_step // LENGTH
            first, last = at - int(rng.integers(0, most)), at
            while (episode, first) not in serials or any((episode, k) not in serials for k in range(first, at)):
                first += 1
            ahead = int(rng.integers(0, most - (at - first)))
            while last < at + ahead and (episode, last + 1) in serials:
                last += 1
            # A window may reach for more than there is of its episode.
            reach = at + ahead if (episode, last + 1) not in serials else last
            owners.append(owner)
            firsts.append(first * LENGTH + int(rng.integers(0, LENGTH)))
            ends.append(reach * LENGTH + int(rng.integers(1, LENGTH + 1)))
            chain = [serials[episode, k] for k in range(first, last + 1)]
            wanted.append(chain + [-1] * (most - len(chain)))
        assert self.store.chains(np.array(owners), np.array(firsts), np.array(ends), most).tolist() == wanted


def stream(rng: np.random.Generator, episodes: int) -> list[Piece]:
    """Episodes of three environments, shuffled a little, so that middles, ends and beginnings come late."""
    pieces: list[tuple[float, Piece]] = []
    clocks, sequence_no = [0.0] * 3, 0
    for episode in range(episodes):
        env = episode % 3
        for piece in cut_episode(SHAPE, int(rng.integers(1, 40)), rng, (0, env, episode), sequence_no):
            clocks[env] += 1
            sequence_no += 1
            pieces.append((clocks[env] + 6 * rng.random(), piece))
    return [piece for _, piece in sorted(pieces, key=lambda timed: timed[0])]


def test_chains_are_those_of_a_plain_dictionary_while_fragments_come_in_any_order_and_go() -> None:
    for seed, first_serial in ((0, 0), (1, 2**48), (2, 3 * 2**48)):
        rng = np.random.default_rng(seed)
        twin = Twin(first_serial, capacity_steps=80)
        for number, piece in enumerate(stream(rng, 60)):
            twin.add(piece)
            if number % 10 == 9:
                check_store(twin.store)
                twin.check_chains(rng, count=40, most=5)
        assert twin.store.oldest_serial > first_serial, "some had to go"
        assert list(twin.pieces) == list(range(twin.store.oldest_serial, twin.store.next_serial))


def test_links_survive_the_growth_of_their_ring() -> None:
    rng = np.random.default_rng(0)
    twin = Twin()
    pieces = iter(stream(rng, 500))
    for _ in range(1_000):
        twin.add(next(pieces))
    for _ in range(700):
        twin.drop_oldest()
    for _ in range(1_500):
        twin.add(next(pieces))
    # When 1,024 were stored the oldest was the 700th, in the middle of the ring.
    assert (len(twin.store), len(twin.store._links)) == (1_800, 2_048)
    check_store(twin.store)
    twin.check_chains(rng, count=200, most=4)


def test_a_window_starts_as_many_strides_behind_its_fragment_as_windows_lie_before_it() -> None:
    store = FragmentStore(1_000, 2**20, 8)
    shape = WindowShape(burn_in=0, unroll=4, n_step=1, stride=4, fragment=8, history=0)
    for index, piece in enumerate(cut_episode(shape, 24, np.random.default_rng(0))):
        store.add(piece.payload, decode_header(piece.payload, 2**20), first_window=100 + 2 * index, num_windows=2)
    starts = store.window_starts(np.array([0, 2, 1, 2]), np.array([101, 104, 102, 105]), stride=4)
    assert starts.tolist() == [4, 16, 8, 20]
