from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from drqn_dist import checkpoint
from drqn_dist.errors import CheckpointError
from drqn_dist.interfaces import EnvSpec
from tests.learner.batches import some_game
from tests.learner.bench import PRIORITIZED, Bench, bench
from tests.tiny import IMAGE, VECTOR, tiny_config


@pytest.mark.parametrize(
    ("core", "torso", "spec"),
    [("gru", "mlp", VECTOR), ("lstm", "small", IMAGE), ("none", "nature", IMAGE)],  # convolutions are channels-last
)
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_save_and_load_go_on_bit_for_bit_as_if_nothing_had_happened(
    core: str, torso: str, spec: EnvSpec, optimizer: str, tmp_path: Path
) -> None:
    sections = {
        "network": {"core": core, "torso": torso},
        "learner": {"optimizer": optimizer, "target_period_updates": 3, "learning_rate": 1e-2},
        "replay": PRIORITIZED | {"capacity_steps": 500},
    }
    game = some_game(tiny_config(**sections), spec)
    straight = Bench(tiny_config(**sections), 5, spec=spec, game=game)
    straight.update(9)

    stopped = Bench(tiny_config(**sections), 5, spec=spec, game=game)
    stopped.update(4)
    checkpoint.save(tmp_path / "c", *stopped.learner.save())
    resumed = Bench(tiny_config(**sections, seed=99), 5, first=4, spec=spec, game=game)
    resumed.learner.load(*checkpoint.load(tmp_path / "c"))
    assert resumed.learner.state.updates == 4
    snapshot = resumed.publisher.latest(3)
    assert snapshot is not None
    assert (snapshot.vector == stopped.learner.state.network.to_vector()).all()
    resumed.update(5)

    (tensors, meta), (others, other_meta) = straight.learner.save(), resumed.learner.save()
    assert meta == other_meta
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name
    updates = straight.priorities.updates[4:]
    for (ids, mine), (other_ids, other) in zip(updates, resumed.priorities.updates, strict=True):
        assert ids.tolist() == other_ids.tolist()
        assert mine.tolist() == other.tolist()


def test_a_checkpoint_of_no_update_can_be_loaded() -> None:
    trained = bench()
    resumed = Bench(tiny_config(seed=5), game=trained.game)
    resumed.learner.load(*trained.learner.save())
    trained.update(2)
    resumed.update(2)
    assert (trained.learner.state.network.to_vector() == resumed.learner.state.network.to_vector()).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": {"core_units": 9}}, r"network.core.rnn.* is of shape \(\d+.* there and of shape \(\d+.* here"),
        ({"network": {"core": "lstm"}}, "network.core.rnn.* is of shape"),
        ({"network": {"head": "dueling"}}, "network.head.* is missing there and of shape"),
        ({"network": {"core": "none"}}, "network.core.rnn.* is of shape .* there and missing here"),
        ({"learner": {"optimizer": "rmsprop"}}, "belongs to another optimizer: optimizer"),
    ],
)
def test_a_checkpoint_of_another_network_or_optimizer_is_refused_and_changes_nothing(
    change: dict[str, Any], message: str
) -> None:
    other = bench()
    other.update(2)
    mine = Bench(tiny_config(**change, seed=3), game=other.game)
    before = mine.learner.save()
    with pytest.raises(CheckpointError, match=message):
        mine.learner.load(*other.learner.save())
    after = mine.learner.save()
    assert after[1] == before[1]
    assert after[0].keys() == before[0].keys()
    assert all(torch.equal(after[0][name], tensor) for name, tensor in before[0].items())


@pytest.mark.parametrize("lost", ["target.head.bias", "optimizer.0.exp_avg"])
def test_an_incomplete_checkpoint_is_refused_and_changes_nothing(lost: str) -> None:
    other = bench()
    other.update(2)
    tensors, meta = other.learner.save()
    del tensors[lost]
    mine = Bench(tiny_config(seed=3), game=other.game)
    before = mine.learner.save()
    with pytest.raises(CheckpointError, match=r"belongs to another (network|optimizer)"):
        mine.learner.load(tensors, meta)
    after = mine.learner.save()
    assert all(torch.equal(after[0][name], tensor) for name, tensor in before[0].items())
    mine.update(2)


def test_a_checkpoint_without_its_facts_is_refused() -> None:
    trained = bench()
    tensors, meta = trained.learner.save()
    del meta["updates"]
    with pytest.raises(CheckpointError, match="lacks 'updates'"):
        trained.learner.load(tensors, meta)
