"""Invariants of the replay and its parts; AssertionError where they do not hold. O(everything stored)."""

from __future__ import annotations

import numpy as np

from replay_server.replay import Replay
from replay_server.sampler import WindowSampler
from replay_server.storage import FragmentStore
from replay_server.sum_tree import SumTree


def can_push(replay: Replay) -> bool:
    """Whether a full fragment could be pushed without waiting."""
    return replay._limiter.can_insert(replay._window.fragment)


def check_replay(replay: Replay) -> None:
    """All parts agree with each other."""
    with replay._lock:
        store, sampler = replay._store, replay._sampler
        check_store(store)
        check_sampler(sampler)
        drawable = 0
        for serial in range(store.oldest_serial, store.next_serial):
            fragment = store[serial]
            assert fragment.drawable == replay._drawable_windows(fragment), "replay: drawable windows are stale"
            drawable += fragment.drawable[1] - fragment.drawable[0]
        assert drawable == sampler.population, "replay: population"


def check_sampler(sampler: WindowSampler) -> None:
    """Tree, weights and counts agree."""
    sampler._flush()
    check_tree(sampler._tree)
    slots = np.arange(sampler._tree.capacity)
    living = (slots - sampler.oldest_id) % sampler._tree.capacity < sampler.next_id - sampler.oldest_id
    assert not sampler._drawable[~living].any(), "sampler: a forgotten window can be drawn"
    assert sampler.population == int(sampler._drawable.sum()), "sampler: population"
    weights = np.where(sampler._drawable, sampler._weights, 0)
    assert np.array_equal(sampler._tree.get(slots), weights), "sampler: weights"


def check_store(store: FragmentStore) -> None:
    """Totals, bounds, links and episodes agree with the fragments."""
    serials = list(store._fragments)
    stored = list(store._fragments.values())
    assert serials == list(range(store.oldest_serial, store.next_serial)), "store: serials are not contiguous"
    assert store.steps == sum(f.num_steps for f in stored) <= store._capacity_steps, "store: steps"
    assert store.bytes == sum(len(f.payload) for f in stored) <= store._capacity_bytes, "store: bytes"
    in_episodes = [f.serial for episode in store._episodes.values() for f in episode.values()]
    assert sorted(in_episodes) == serials, "store: episodes and fragments differ"
    for fragment in stored:
        episode = store._episodes[fragment.key]
        neighbours = [store._serial_of(episode, fragment.index + side) for side in (-1, 1)]
        links = (fragment.first_step, fragment.first_window, *neighbours)
        assert store._links[fragment.serial % len(store._links)].tolist() == links, "store: links"


def check_tree(tree: SumTree) -> None:
    """Every inner node is the sum of its children, and no weight is negative."""
    inner = tree._nodes[1 : tree.capacity]
    assert np.array_equal(inner, tree._nodes[2::2] + tree._nodes[3::2]), "sum tree: inner sums are stale"
    assert (tree._nodes[tree.capacity :] >= 0).all(), "sum tree: negative weight"
