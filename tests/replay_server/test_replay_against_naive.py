"""The replay and an obvious one, driven by the same random operations."""

from __future__ import annotations

import numpy as np
import pytest

from drqn_dist.codec import decode
from drqn_dist.config import ReplayConfig, WindowShape
from drqn_dist.interfaces import WindowDraws
from replay_server import windows
from replay_server.replay import Replay
from replay_server.sampler import PRIORITY_FLOOR
from tests.replay_server.fragments import Piece, cut_episode, random_shape
from tests.replay_server.keeper import Keeper, chains_of
from tests.replay_server.naive import NaiveReplay, Window, trained_steps
from tests.replay_server.validity import check_replay

MAX_BYTES = 2**20


def random_stream(shape: WindowShape, rng: np.random.Generator) -> list[Piece]:
    """Episodes of a few environments, nearly in order, some of it lost, some of it twice."""
    stream: list[tuple[float, Piece]] = []
    for env in range(int(rng.integers(1, 4))):
        clock, sequence_no = 0.0, 0
        for episode in range(int(rng.integers(1, 6))):
            steps = int(rng.integers(1, 5 * shape.fragment + 20))
            pieces = cut_episode(shape, steps, rng, (1, env, episode), sequence_no, bool(rng.random() < 0.9))
            sequence_no += len(pieces)
            for piece in pieces:
                clock += piece.num_steps
                for _ in range(int(rng.choice([0, 1, 1, 1, 1, 1, 2]))):
                    stream.append((clock + rng.random() * 2 * shape.fragment, piece))
    return [piece for _, piece in sorted(stream, key=lambda timed: timed[0])]


def windows_in(draws: WindowDraws, keeper: Keeper, shape: WindowShape) -> list[Window]:
    """The windows drawn, after reading their fragments and checking that they hold all that is read."""
    payloads = keeper.read(draws)
    decoded = {serial: decode(payload, MAX_BYTES) for serial, payload in payloads.items()}
    found = []
    for start, chain in zip(draws.starts.tolist(), chains_of(draws), strict=True):
        fragments = [decoded[serial] for serial in chain]
        episodes = {(f.actor_id, f.env_id, f.episode_id) for f in fragments}
        assert len(episodes) == 1, "a window mixes episodes"
        steps = [f.first_step + k for f in fragments for k in range(f.num_steps)]
        assert steps == list(range(steps[0], steps[-1] + 1)), "a chain is not contiguous"
        (first,), (end,) = (bounds.tolist() for bounds in windows.steps_read(shape, np.array([start])))
        if fragments[-1].ends_episode:
            end = min(end, steps[-1] + 1)
        assert set(range(first, end)) <= set(steps), "a window misses steps that it reads"
        assert first >= fragments[0].first_step
        assert steps[0] + fragments[0].num_steps > first, "a fragment is in the chain that is not read"
        assert fragments[-1].first_step < end
        found.append((episodes.pop(), start))
    return found


@pytest.mark.parametrize("prioritized", [True, False])
def test_draws_exactly_the_windows_of_the_naive_replay_with_its_probabilities(prioritized: bool) -> None:
    for seed in range(15):
        rng = np.random.default_rng(seed)
        shape = random_shape(rng)
        least = shape.most_fragments * shape.fragment
        config = ReplayConfig(
            capacity_steps=least + int(rng.integers(0, 6 * shape.fragment)),
            capacity_bytes=int(rng.choice([2**30, 1500])),
            min_steps=1,
            samples_per_insert=1e6,
            prioritized=prioritized,
            priority_exponent=0.7,
        )
        replay = Replay(config, shape, 32, 10**9, seed)
        naive = NaiveReplay(shape, config.capacity_steps, config.capacity_bytes)
        # From one that gets everything at once to one that keeps nothing.
        limit = int(rng.choice([0, 1, 3, 1000]))
        keeper = Keeper(fresh_limit=limit, room=limit + int(rng.choice([0, 5, 1000])))
        given: dict[int, Window] = {}
        late = 0
        for piece in random_stream(shape, rng):
            assert replay.push(piece.payload) == naive.push(piece)
            drawable = naive.drawable()
            stats = replay.stats()
            assert stats.windows == len(drawable)
            assert stats.stored_steps == sum(p.num_steps for p in naive.stored)
            assert stats.stored_bytes == sum(len(p.payload) for p in naive.stored)
            if drawable and rng.random() < 0.5:
                held = keeper.held(0)
                answer = replay.sample([20, 12], held, limit)
                fresh, draws = answer.fresh, answer.draws
                assert draws is not None
                assert list(enumerate(fresh.fragments, fresh.first)) == naive.fresh(held.end, limit)
                keeper.receive(fresh, 0)
                weights = {
                    window: max(priority, PRIORITY_FLOOR) ** 0.7 if prioritized else 1.0
                    for window, priority in drawable.items()
                }
                drawn = windows_in(draws, keeper, shape)
                assert list(chains_of(draws)) == [naive.chain(window) for window in drawn]
                expected = [weights[window] / sum(weights.values()) for window in drawn]
                assert draws.probabilities == pytest.approx(expected)
                for window_id, window in zip(draws.ids.tolist(), drawn, strict=True):
                    assert given.setdefault(window_id, window) == window, "an id was given twice"
            if given and rng.random() < 0.5:
                ids = rng.choice(list(given), min(8, len(given)), replace=False)
                priorities = rng.random(len(ids))
                replay.update_priorities(ids, priorities)
                for window_id, priority in zip(ids.tolist(), priorities.tolist(), strict=True):
                    late += given[window_id] not in drawable
                    naive.priorities[given[window_id]] = priority
                assert replay.stats().late_priorities == late
        check_replay(replay)


def test_every_step_of_stored_episodes_lies_in_the_unroll_of_a_drawn_window() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        shape = random_shape(rng)
        episodes = {(0, 0, number): int(rng.integers(1, 40)) for number in range(4)}
        config = ReplayConfig(capacity_steps=10_000, min_steps=1, samples_per_insert=1e6, prioritized=False)
        replay = Replay(config, shape, 64, 10**9, seed)
        sequence_no = 0
        for episode, steps in episodes.items():
            pieces = cut_episode(shape, steps, rng, episode, sequence_no)
            sequence_no += len(pieces)
            for piece in pieces:
                replay.push(piece.payload)
        population = replay.stats().windows
        # Drawn uniformly from equal shares, a batch of at least twice the population holds every window.
        drawn: set[Window] = set()
        keeper = Keeper()
        while len(drawn) < population:
            answer = replay.sample([64], keeper.held(0), keeper.fresh_limit)
            keeper.receive(answer.fresh, 0)
            assert answer.draws is not None
            drawn |= set(windows_in(answer.draws, keeper, shape))
        trained = [
            (episode, step) for episode, start in drawn for step in trained_steps(shape, start, episodes[episode])
        ]
        assert set(trained) == {(episode, step) for episode, steps in episodes.items() for step in range(steps)}
        if shape.stride == shape.unroll:
            assert len(trained) == len(set(trained))
