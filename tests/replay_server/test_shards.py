"""Shards against one replay that holds everything they hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from drqn_dist.codec import decode
from drqn_dist.config import ReplayConfig
from drqn_dist.interfaces import WindowSample
from replay_server.rate_limiter import Balance
from replay_server.replay import Replay, total_stats
from replay_server.shards import SHARD_STRIDE, ShardLedger, Split
from tests.replay_server.fragments import cut_episode
from tests.replay_server.test_replay import MAX_BYTES, SHAPE

UNROLL = SHAPE.unroll
ENVS = 12
Place = tuple[int, int, int]
"""A window by its environment, episode and start, whatever its id."""


def make_parts(shards: int, min_steps: int = 1, tolerance: int = 10**9, spi: float = 1.0) -> list[Replay]:
    config = ReplayConfig(
        capacity_steps=12_000, min_steps=min_steps, samples_per_insert=spi, priority_exponent=1.0, shards=shards
    )
    return [
        Replay(config, SHAPE, 16, tolerance, seed=k, shard=k, shards=shards, batches_per_draw=2) for k in range(shards)
    ]


def fill(parts: Sequence[Replay], envs: Sequence[int] = range(ENVS)) -> None:
    """One episode of each environment, of unlike lengths and priorities, to the shards in turn."""
    for env in envs:
        rng = np.random.default_rng(env)
        for piece in cut_episode(SHAPE, 20 + 7 * env, rng, (env, 0, 0)):
            parts[env % len(parts)].push(piece.payload)


def tell(ledger: ShardLedger, parts: Sequence[Replay]) -> None:
    for k, part in enumerate(parts):
        ledger.update(k, part.sample_share(0, 0, ledger.elsewhere(k), 0.0)[1])


def draw(ledger: ShardLedger, parts: Sequence[Replay], batches: int, windows: int) -> tuple[Split, list[WindowSample]]:
    split = ledger.split(batches, windows)
    drawn: list[WindowSample | None] = []
    for k, part in enumerate(parts):
        sample, tally = part.sample_share(split.windows[k], 0, ledger.elsewhere(k), 0.0)
        ledger.update(k, tally)
        drawn.append(sample)
    return split, ledger.join(split, drawn)


def places(sample: WindowSample) -> list[Place]:
    """Also checks that each window's spans hold what it reads."""
    fragments = [decode(payload, MAX_BYTES) for payload in sample.fragments]
    found = []
    for window in sample.windows:
        chain = [fragments[span.fragment] for span in window.spans]
        assert [f.first_step for f in chain] == [span.first_step for span in window.spans]
        assert len({(f.actor_id, f.episode_id) for f in chain}) == 1
        assert chain[0].first_step <= window.unroll_start
        found.append((chain[0].actor_id, chain[0].episode_id, window.unroll_start))
    return found


def probabilities(parts: Sequence[Replay], count: int) -> dict[Place, float]:
    """Of every window, as reported with draws that meet all of them."""
    ledger = ShardLedger(len(parts), seed=0)
    tell(ledger, parts)
    _, samples = draw(ledger, parts, 2, count)
    found: dict[Place, float] = {}
    for sample in samples:
        for place, probability in zip(places(sample), sample.probabilities.tolist(), strict=True):
            assert found.setdefault(place, probability) == pytest.approx(probability, rel=1e-12)
    return found


@pytest.mark.parametrize("shards", [2, 3, 4])
def test_every_window_has_the_probability_that_one_replay_would_give_it(shards: int) -> None:
    whole, parts = make_parts(1), make_parts(shards)
    fill(whole)
    fill(parts)
    wanted, found = probabilities(whole, 20_000), probabilities(parts, 20_000)
    assert len(wanted) == whole[0].stats().windows == total_stats([part.stats() for part in parts]).windows
    assert found == pytest.approx(wanted, rel=1e-12)
    assert sum(found.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("shards", [2, 4])
def test_draws_follow_the_distribution_of_one_replay(shards: int) -> None:
    """Pearson's χ² over all windows, and its p by the approximation of Wilson and Hilferty. Of every call the first
    window counts: all of one call together are spread over the shard on purpose."""
    parts = make_parts(shards)
    fill(parts)
    expected = probabilities(parts, 20_000)
    ledger = ShardLedger(shards, seed=1)
    tell(ledger, parts)
    seen = dict.fromkeys(expected, 0)
    for _ in range(5_000):
        seen[places(draw(ledger, parts, 2, 1)[1][0])[0]] += 1
    total = sum(seen.values())
    rare = [place for place, p in expected.items() if total * p < 10]
    cells = [(seen[place], total * p) for place, p in expected.items() if place not in rare]
    cells.append((sum(seen[place] for place in rare), total * sum(expected[place] for place in rare)))
    freedom = len(cells) - 1
    chi2 = sum((count - mean) ** 2 / mean for count, mean in cells)
    z = ((chi2 / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / np.sqrt(2 / (9 * freedom))
    assert abs(z) < 2.33, f"χ² {chi2:.0f} at {freedom} degrees of freedom"  # p > 0.01


def test_importance_weights_stay_exact_while_a_shard_changes_unseen() -> None:
    """Half of a shard's windows gain weight after the ledger heard of it: what 1 / (N · P) estimates stays 1."""
    parts = make_parts(2)
    fill(parts)
    ledger = ShardLedger(2, seed=2)
    tell(ledger, parts)
    split = ledger.split(1, 40_000)
    owned = np.arange(parts[1].stats().windows) + SHARD_STRIDE
    parts[1].update_priorities(owned[::2], np.full(len(owned[::2]), 3.0))
    drawn = []
    for k, part in enumerate(parts):
        part_of_it, tally = part.sample_share(split.windows[k], 0, None, 0.0)
        if k == 0:  # the news of the other has come, but too late for this draw
            ledger.update(k, tally)
        drawn.append(part_of_it)
    (sample,) = ledger.join(split, drawn)
    weights = 1 / (sample.population * sample.probabilities)
    for shard in range(2):
        mine = sample.ids // SHARD_STRIDE == shard
        share = parts[shard].stats().windows / sample.population
        assert weights[mine].sum() / len(weights) == pytest.approx(share, rel=0.02)


def test_ids_tell_the_shard_and_priorities_find_their_window() -> None:
    parts = make_parts(3)
    fill(parts)
    ledger = ShardLedger(3, seed=0)
    tell(ledger, parts)
    _, (sample, _) = draw(ledger, parts, 2, 64)
    for place, window in zip(places(sample), sample.ids.tolist(), strict=True):
        assert place[0] % 3 == window // SHARD_STRIDE
    mine = sample.ids // SHARD_STRIDE == 1
    parts[1].update_priorities(sample.ids[mine], np.ones(int(mine.sum())))
    parts[1].update_priorities(sample.ids[~mine], np.ones(int((~mine).sum())))
    assert parts[1].stats().late_priorities == int((~mine).sum())


def test_batches_of_one_call_hold_every_window_drawn_once_and_only_the_fragments_they_read() -> None:
    parts = make_parts(3)
    fill(parts)
    ledger = ShardLedger(3, seed=0)
    tell(ledger, parts)
    split = ledger.split(4, 5)
    shares = [part.sample_share(count, 0, None, 0.0)[0] for part, count in zip(parts, split.windows, strict=True)]
    batches = ledger.join(split, shares)
    for batch, counts in zip(batches, split.counts.T.tolist(), strict=True):
        assert [int(n) for n in np.bincount(batch.ids // SHARD_STRIDE, minlength=3)] == counts
        read = {span.fragment for window in batch.windows for span in window.spans}
        assert read == set(range(len(batch.fragments)))
        assert len(set(batch.fragments)) == len(batch.fragments)
        assert len(places(batch)) == 5
    joined = np.concatenate([batch.ids for batch in batches])
    drawn = np.concatenate([share.ids for share in shares if share is not None])
    assert sorted(joined.tolist()) == sorted(drawn.tolist())


def test_counts_of_the_whole_are_told_with_every_sample() -> None:
    parts = make_parts(2)
    fill(parts)
    ledger = ShardLedger(2, seed=0)
    tell(ledger, parts)
    for sample in draw(ledger, parts, 2, 32)[1]:
        stats = total_stats([part.stats() for part in parts])
        assert sample.population == stats.windows
        assert sample.inserted_steps == stats.inserted_steps
        assert len(sample.ids) == len(sample.probabilities) == len(sample.windows) == 32
    assert stats.sampled_steps == 2 * 32 * UNROLL


def test_a_lost_shard_is_not_drawn_from_until_it_tells_of_itself() -> None:
    parts = make_parts(2)
    fill(parts)
    ledger = ShardLedger(2, seed=0)
    tell(ledger, parts)
    inserted = ledger.elsewhere(0)
    ledger.lose(1)
    split = ledger.split(4, 32)
    assert split.counts.sum(1).tolist() == [4 * 32, 0]
    lost = ledger.elsewhere(0)
    assert inserted is not None
    assert lost == Balance(inserted.filled_steps, inserted.debt, drawable=False)
    parts[1] = make_parts(2)[1]
    fill([make_parts(2)[0], parts[1]])
    tell(ledger, parts)
    assert (ledger.split(4, 32).counts.sum(1) > 0).all()


def test_nothing_is_asked_for_while_nothing_can_be_drawn() -> None:
    parts = make_parts(2)
    ledger = ShardLedger(2, seed=0)
    assert ledger.elsewhere(0) is None  # the other has not told yet
    assert not ledger.split(2, 16).counts.any()
    tell(ledger, parts)
    assert not ledger.split(2, 16).counts.any()
    assert ledger.elsewhere(0) == Balance()


def test_shards_wait_for_the_rate_of_the_whole_and_not_for_their_own() -> None:
    """All samples go to one shard, all inserts come to the other."""
    parts = make_parts(2, min_steps=40, tolerance=128)
    ledger = ShardLedger(2, seed=0)
    fill(parts, envs=[0, 1, 2, 3])
    call = 2 * 16 * UNROLL

    def sample(shard: int) -> bool:
        drawn, tally = parts[shard].sample_share(2 * 16, call, ledger.elsewhere(shard), 0.0)
        ledger.update(shard, tally)
        return drawn is not None

    tell(ledger, parts)
    while sample(0):
        tell(ledger, parts)
    before = parts[0].stats().sampled_steps
    assert before > 0
    for env in range(4, 3 * ENVS):
        for piece in cut_episode(SHAPE, 40, np.random.default_rng(env), (env, 0, 0)):
            assert parts[1].can_push()
            parts[1].push(piece.payload)
            tell(ledger, parts)
            while sample(0):
                tell(ledger, parts)
    stats = total_stats([part.stats() for part in parts])
    assert parts[0].stats().sampled_steps > before
    assert abs(stats.sampled_steps - stats.counted_steps) <= 128 + call


def test_a_shard_with_nothing_left_says_so() -> None:
    (part,) = make_parts(1)
    drawn, tally = part.sample_share(4, 4 * UNROLL, Balance(1000, drawable=True), 0.0)
    assert drawn is None
    assert tally.population == 0
