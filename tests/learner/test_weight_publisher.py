from __future__ import annotations

import torch

from learner.weight_publisher import WeightPublisher
from tests.tiny import VECTOR, make_network, tiny_config


def test_gives_a_snapshot_only_to_those_who_know_an_older_one() -> None:
    publisher = WeightPublisher()
    assert publisher.latest(-1) is None
    network = make_network(tiny_config(), VECTOR)
    publisher.publish(network, 0)
    snapshot = publisher.latest(-1)
    assert snapshot is not None
    assert snapshot.version == 0
    assert publisher.latest(0) is None
    publisher.publish(network, 20)
    newer = publisher.latest(0)
    assert newer is not None
    assert newer.version == 20


def test_a_snapshot_does_not_change_when_the_network_is_trained_on() -> None:
    publisher = WeightPublisher()
    network = make_network(tiny_config(), VECTOR)
    publisher.publish(network, 0)
    snapshot = publisher.latest(-1)
    assert snapshot is not None
    before = snapshot.vector.copy()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 1
    publisher.publish(network, 1)
    assert (snapshot.vector == before).all()
