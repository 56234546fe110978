from __future__ import annotations

from drqn_dist.seeding import derive_seed


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
