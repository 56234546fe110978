"""Shards against one replay that holds everything they hold."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from drqn_dist.codec import decode
from drqn_dist.config import ReplayConfig
from drqn_dist.interfaces import SHARD_STRIDE, Held, WindowDraws
from replay_server.rate_limiter import Balance
from replay_server.replay import Replay
from replay_server.shards import ShardAnswer, ShardLedger, Split
from replay_server.stats import total_stats
from tests.replay_server.fragments import cut_episode
from tests.replay_server.keeper import Keeper, chains_of
from tests.replay_server.test_replay import MAX_BYTES, SHAPE
from tests.replay_server.validity import can_push

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


def ask(
    ledger: ShardLedger, parts: Sequence[Replay], shard: int, counts: Sequence[int] = (), steps: int = 0
) -> ShardAnswer:
    """What a shard answers to a learner that keeps nothing."""
    return parts[shard].sample(counts, Held(), 0, 0.0, steps, ledger.elsewhere(shard))


def tell(ledger: ShardLedger, parts: Sequence[Replay]) -> None:
    for k in range(len(parts)):
        ledger.update(k, ask(ledger, parts, k).tally)


def make_filled(shards: int, seed: int = 0) -> tuple[list[Replay], ShardLedger]:
    """Shards that hold an episode of each environment, and a ledger that knows of them."""
    parts, ledger = make_parts(shards), ShardLedger(shards, seed)
    fill(parts)
    tell(ledger, parts)
    return parts, ledger


def draw(ledger: ShardLedger, parts: Sequence[Replay], batches: int, windows: int) -> tuple[Split, WindowDraws]:
    split = ledger.split(batches, windows)
    drawn: list[WindowDraws | None] = []
    for k in range(len(parts)):
        answer = ask(ledger, parts, k, split.counts[k].tolist())
        ledger.update(k, answer.tally)
        drawn.append(answer.draws)
    return split, ledger.join(split, drawn)


def places(draws: WindowDraws) -> list[Place]:
    """Also checks that each window's chain holds what it reads."""
    fragments = {s: decode(payload, MAX_BYTES) for s, payload in Keeper().read(draws).items()}
    found = []
    for start, serials in zip(draws.starts.tolist(), chains_of(draws), strict=True):
        chain = [fragments[serial] for serial in serials]
        assert len({(f.actor_id, f.episode_id) for f in chain}) == 1
        for before, after in pairwise(chain):
            assert before.first_step + before.num_steps == after.first_step
        last = chain[-1].first_step + chain[-1].num_steps
        assert chain[0].first_step <= max(0, start - SHAPE.burn_in - SHAPE.history)
        assert chain[-1].ends_episode or last >= start + SHAPE.unroll + SHAPE.n_step - 1
        found.append((chain[0].actor_id, chain[0].episode_id, start))
    return found


def probabilities(parts: Sequence[Replay], count: int) -> dict[Place, float]:
    """Of every window, as reported with draws that meet all of them."""
    ledger = ShardLedger(len(parts), seed=0)
    tell(ledger, parts)
    _, draws = draw(ledger, parts, 2, count)
    found: dict[Place, float] = {}
    for place, probability in zip(places(draws), draws.probabilities.tolist(), strict=True):
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
        seen[places(draw(ledger, parts, 2, 1)[1])[0]] += 1
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
    parts, ledger = make_filled(2, seed=2)
    split = ledger.split(1, 40_000)
    owned = np.arange(parts[1].stats().windows) + SHARD_STRIDE
    parts[1].update_priorities(owned[::2], np.full(len(owned[::2]), 3.0))
    drawn = []
    for k in range(2):
        answer = ask(ledger, parts, k, split.counts[k].tolist())
        if k == 0:  # the news of the other has come, but too late for this draw
            ledger.update(k, answer.tally)
        drawn.append(answer.draws)
    draws = ledger.join(split, drawn)
    weights = 1 / (draws.population * draws.probabilities)
    for shard in range(2):
        mine = draws.ids // SHARD_STRIDE == shard
        share = parts[shard].stats().windows / draws.population
        assert weights[mine].sum() / len(weights) == pytest.approx(share, rel=0.02)


def test_ids_tell_the_shard_and_priorities_find_their_window() -> None:
    parts, ledger = make_filled(3)
    _, draws = draw(ledger, parts, 2, 64)
    shards = draws.ids // SHARD_STRIDE
    assert [place[0] % 3 for place in places(draws)] == shards.tolist()
    assert (draws.chains[:, 0] // SHARD_STRIDE == shards).all(), "serial numbers tell it too"
    mine = shards == 1
    parts[1].update_priorities(draws.ids[mine], np.ones(int(mine.sum())))
    parts[1].update_priorities(draws.ids[~mine], np.ones(int((~mine).sum())))
    assert parts[1].stats().late_priorities == int((~mine).sum())


def test_every_window_drawn_lies_in_the_batch_that_it_was_drawn_for() -> None:
    parts, ledger = make_filled(3)
    split = ledger.split(4, 5)
    assert split.counts.sum(0).tolist() == [5] * 4
    shares = [ask(ledger, parts, k, split.counts[k].tolist()).draws for k in range(3)]
    joined = ledger.join(split, shares)
    owners = joined.ids // SHARD_STRIDE
    found = [np.bincount(batch, minlength=3).tolist() for batch in owners.reshape(4, 5)]
    assert found == split.counts.T.tolist()
    for shard, share in enumerate(shares):
        if share is not None:
            mine = owners == shard
            for name in ("ids", "starts", "chains"):
                assert getattr(joined, name)[mine].tolist() == getattr(share, name).tolist(), "batch after batch"
            expected = share.probabilities * split.probabilities[shard]
            assert joined.probabilities[mine].tolist() == expected.tolist()
    assert len(places(joined)) == 4 * 5


def test_fragments_that_come_along_from_several_shards_keep_their_serial_numbers() -> None:
    parts, ledger = make_filled(3)
    _, draws = draw(ledger, parts, 2, 32)
    assert (np.diff(draws.unheld) > 0).all()
    assert set((draws.unheld // SHARD_STRIDE).tolist()) == {0, 1, 2}
    for serial, payload in zip(draws.unheld.tolist(), draws.unheld_fragments, strict=True):
        assert parts[serial // SHARD_STRIDE]._store[serial].payload == payload


def test_the_fragments_of_each_shard_are_a_log_of_their_own() -> None:
    parts, keeper = make_parts(2), Keeper(shards=2)
    fill(parts)
    for _ in range(2):
        for shard, part in enumerate(parts):
            keeper.receive(part.sample([], keeper.held(shard), 10**6, 0.0, 0).fresh, shard)
    for shard, part in enumerate(parts):
        ((_, log),) = keeper.logs[shard].items()
        assert [serial - shard * SHARD_STRIDE for serial, _ in log] == list(range(part.stats().fragments))


def test_counts_of_the_whole_are_told_with_every_draw() -> None:
    parts, ledger = make_filled(2)
    _, draws = draw(ledger, parts, 2, 32)
    stats = total_stats([part.stats() for part in parts])
    assert draws.population == stats.windows
    assert draws.inserted_steps == stats.inserted_steps
    assert len(draws.ids) == len(draws.probabilities) == len(draws.starts) == len(draws.chains) == 2 * 32
    assert stats.sampled_steps == 2 * 32 * UNROLL


def test_a_lost_shard_is_not_drawn_from_until_it_tells_of_itself() -> None:
    parts, ledger = make_filled(2)
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
        answer = ask(ledger, parts, shard, [16, 16], call)
        ledger.update(shard, answer.tally)
        return answer.draws is not None

    tell(ledger, parts)
    while sample(0):
        tell(ledger, parts)
    before = parts[0].stats().sampled_steps
    assert before > 0
    for env in range(4, 3 * ENVS):
        for piece in cut_episode(SHAPE, 40, np.random.default_rng(env), (env, 0, 0)):
            assert can_push(parts[1])
            parts[1].push(piece.payload)
            tell(ledger, parts)
            while sample(0):
                tell(ledger, parts)
    stats = total_stats([part.stats() for part in parts])
    assert parts[0].stats().sampled_steps > before
    assert abs(stats.sampled_steps - stats.counted_steps) <= 128 + call


def test_a_shard_with_nothing_left_says_so() -> None:
    (part,) = make_parts(1)
    answer = part.sample([4], Held(), 0, 0.0, 4 * UNROLL, Balance(1000, drawable=True))
    assert answer.draws is None
    assert answer.tally.population == 0
