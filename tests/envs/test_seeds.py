from __future__ import annotations

from drqn_dist.envs.seeds import row_seeds


def test_seeds_of_neighbouring_batches_do_not_overlap() -> None:
    seeds = [int(s) for batch in range(50) for s in row_seeds(batch, 64)]
    assert len(set(seeds)) == 50 * 64
    assert all(0 <= s < 2**31 for s in seeds)


def test_more_rows_keep_the_seeds_of_the_first_ones() -> None:
    assert row_seeds(7, 16)[:4].tolist() == row_seeds(7, 4).tolist()
