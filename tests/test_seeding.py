from __future__ import annotations

from drqn_dist.seeding import derive_seed, row_seeds


def test_every_stream_of_a_run_has_its_own_seed() -> None:
    seeds = [derive_seed(0, "network")]
    for actor in range(50):
        for incarnation in range(3):
            seeds.append(derive_seed(0, "actor", actor, incarnation))
            seeds.append(derive_seed(0, "actor", actor, incarnation, 1))
            seeds.append(derive_seed(0, "environment", actor, incarnation))
    seeds += [derive_seed(0, "evaluation", use) for use in (1, 2, 3)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**30 for seed in seeds)


def test_the_same_parts_give_the_same_seed_and_another_run_another() -> None:
    assert derive_seed(3, "actor", 1, 2) == derive_seed(3, "actor", 1, 2)
    assert derive_seed(3, "actor", 1, 2) != derive_seed(4, "actor", 1, 2)


def test_seeds_of_neighbouring_batches_do_not_overlap() -> None:
    seeds = [int(s) for batch in range(50) for s in row_seeds(batch, 64)]
    assert len(set(seeds)) == 50 * 64
    assert all(0 <= s < 2**31 for s in seeds)


def test_more_rows_keep_the_seeds_of_the_first_ones() -> None:
    assert row_seeds(7, 16)[:4].tolist() == row_seeds(7, 4).tolist()
