from __future__ import annotations

import torch

from drqn_dist.network.head import DuelingHead, make_head
from tests.network.test_unroll import random_inputs
from tests.oracles import unroll
from tests.tiny import VECTOR, make_network, tiny_config


def test_dueling_is_value_plus_advantage_less_its_mean() -> None:
    head = DuelingHead(2, hidden=0, num_actions=3)
    with torch.no_grad():
        head.value.weight.copy_(torch.tensor([[1.0, 0.0]]))
        head.advantage.weight.copy_(torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 6.0]]))
        head.value.bias.zero_()
        head.advantage.bias.zero_()
    assert head(torch.tensor([[10.0, 1.0]])).tolist() == [[10 + 1 - 3, 10 + 2 - 3, 10 + 6 - 3]]


def test_the_mean_of_dueling_q_values_is_the_value() -> None:
    head = DuelingHead(5, hidden=7, num_actions=4)
    features = torch.randn(2, 3, 5)
    torch.testing.assert_close(head(features).mean(-1, keepdim=True), head.value(features))


def test_a_hidden_layer_has_the_width_that_was_asked_for() -> None:
    assert [p.shape for p in make_head("linear", 5, 7, 4).parameters() if p.dim() == 2] == [(7, 5), (4, 7)]
    assert [p.shape for p in make_head("linear", 5, 0, 4).parameters() if p.dim() == 2] == [(4, 5)]


def test_the_articles_head_confines_q_to_between_minus_one_and_one_and_others_do_not() -> None:
    largest = {}
    for head in ("gru_q", "linear"):
        network = make_network(tiny_config(network={"head": head}), VECTOR)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter *= 30
            q_values, _ = unroll(network, random_inputs(VECTOR, 2, 5, 1), network.initial_state(2))
        largest[head] = q_values.abs().max().item()
    assert 0.9 < largest["gru_q"] <= 1 < largest["linear"]
