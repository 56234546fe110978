from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from drqn_dist.errors import ConfigError, EnvError
from drqn_dist.interfaces import EnvSpec
from drqn_dist.network.q_network import NetworkInput, QNetwork, use_bf16
from drqn_dist.presets import preset
from tests.network.test_unroll import random_inputs
from tests.oracles import step_once, unroll
from tests.tiny import IMAGE, VECTOR, make_network, tiny_config


def inputs(last_action: int = -1, last_reward: float = 0.0) -> NetworkInput:
    return NetworkInput(torch.ones(1, 1, 3), torch.tensor([[last_action]]), torch.tensor([[last_reward]]))


def q_of(network: QNetwork, given: NetworkInput) -> list[float]:
    with torch.no_grad():
        return [float(q) for q in unroll(network, given, network.initial_state(1))[0].flatten()]


def test_last_action_and_reward_reach_the_core_only_if_asked_for() -> None:
    network = make_network(tiny_config(network={"last_action_and_reward": True}), VECTOR)
    plain = make_network(tiny_config(), VECTOR)
    answers = [q_of(network, inputs(action, reward)) for action in range(-1, 4) for reward in (-1.0, 0.0, 1.0)]
    assert len(set(map(tuple, answers))) == len(answers)
    assert q_of(plain, inputs()) == q_of(plain, inputs(3, 1.0))


def test_no_action_is_an_all_zero_one_hot_and_the_reward_enters_clipped() -> None:
    network = make_network(tiny_config(network={"last_action_and_reward": True}), VECTOR)
    seen: list[torch.Tensor] = []
    network.core.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    q_of(network, inputs(-1, 0.5))
    q_of(network, inputs(2, -200.0))
    assert seen[0][0, 0, 8:].tolist() == [0, 0, 0, 0, 0.5]
    assert seen[1][0, 0, 8:].tolist() == [0, 0, 1, 0, -1]


@pytest.mark.parametrize("core", ["gru", "lstm", "none"])
def test_weights_survive_the_way_through_a_vector_buffers_and_all(core: str) -> None:
    config = tiny_config(network={"torso": "small", "core": core})
    one, two = make_network(config, IMAGE, 0), make_network(config, IMAGE, 1)
    given = random_inputs(IMAGE, 2, 2, 1)
    one.center_pixels(one.torso.fold(given.observations.flatten(0, 1)).float().mean(0))
    vector = one.to_vector()
    assert vector.dtype == np.float32
    two.load_vector(vector)
    assert two.to_vector().tolist() == vector.tolist()
    for mine, other in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(mine, other)
    with torch.no_grad():
        assert torch.equal(unroll(one, given, one.initial_state(2))[0], unroll(two, given, two.initial_state(2))[0])


def test_the_vector_is_a_copy_in_both_directions() -> None:
    network = make_network(tiny_config(), VECTOR)
    vector = network.to_vector()
    before = vector.copy()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 1
    assert (vector == before).all()
    read_only = before.copy()
    read_only.flags.writeable = False  # as Ray hands arrays out
    network.load_vector(read_only)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 1
    assert (read_only == before).all()


@pytest.mark.parametrize("length", [0, 1])
def test_a_vector_of_another_network_is_refused(length: int) -> None:
    network = make_network(tiny_config(), VECTOR)
    wrong = np.zeros(length * (len(network.to_vector()) + 1), np.float32)
    with pytest.raises(ValueError, match=rf"weights of shape \({len(wrong)},\) do not fit a network of"):
        network.load_vector(wrong)


def test_a_centred_network_answers_as_one_that_is_given_the_difference() -> None:
    config = tiny_config(network={"torso": "small"})
    centred, plain = make_network(config, IMAGE), make_network(config, IMAGE)
    given = random_inputs(IMAGE, 2, 2, 1)
    before = unroll(centred, given, centred.initial_state(2))[0]
    centred.center_pixels(torch.zeros(9, 9, 16))
    with torch.no_grad():
        plain.get_parameter("torso.convolutions.0.weight").mul_(255 / 40)
    torch.testing.assert_close(
        unroll(centred, given, centred.initial_state(2))[0], unroll(plain, given, plain.initial_state(2))[0]
    )
    centred.center_pixels(torch.full((9, 9, 16), 100.0))
    assert (unroll(centred, given, centred.initial_state(2))[0] - before).abs().max() > 1e-3


@pytest.mark.parametrize("spec", [VECTOR, IMAGE])
def test_centring_without_convolutions_is_refused_before_anything_runs(spec: EnvSpec) -> None:
    with pytest.raises(EnvError, match=r"network.center_pixels needs .*convolution"):
        make_network(tiny_config(network={"torso": "mlp", "center_pixels": True}), spec)


@pytest.mark.parametrize("torso", ["small", "mlp"])
def test_images_are_not_standardized(torso: str) -> None:
    with pytest.raises(EnvError, match=r"network.standardize_vectors is for vectors, but observations are uint8"):
        make_network(tiny_config(network={"torso": torso, "standardize_vectors": True}), IMAGE)
    with pytest.raises(ValueError, match="only an MLP torso"):
        make_network(tiny_config(), VECTOR).standardize(torch.zeros(3), torch.ones(3))


def test_the_articles_network_is_four_frames_512_units_and_a_gru_with_one_unit_per_action() -> None:
    config = preset("article")
    spec = EnvSpec((1, 84, 84), "uint8", num_actions=6, frames_per_step=4)
    network = make_network(config, spec)
    shapes: dict[str, Any] = {name: tuple(p.shape) for name, p in network.named_parameters()}
    assert shapes["torso.convolutions.0.weight"] == (32, 4, 8, 8)
    assert shapes["torso.dense.weight"] == (512, 64 * 7 * 7)
    assert shapes["core.rnn.weight_ih_l0"] == (3 * 6, 512)
    assert shapes["core.rnn.weight_hh_l0"] == (3 * 6, 6)
    assert not [name for name in shapes if name.startswith("head")]
    q_values, state = step_once(
        network, NetworkInput(*(x[:, 0] for x in random_inputs(spec, 1, 1, 4))), network.initial_state(1)
    )
    assert q_values.tolist() == state[0].tolist()


@pytest.mark.parametrize(("core", "shape"), [("gru", (1, 3, 8)), ("lstm", (2, 3, 8)), ("none", (0, 3, 0))])
def test_the_initial_state_is_zero_and_of_the_cores_shape(core: str, shape: tuple[int, ...]) -> None:
    state = make_network(tiny_config(network={"core": core}), VECTOR).initial_state(3)
    assert state.shape == shape
    assert not state.any()


def test_precision_can_be_forced_and_is_otherwise_what_the_hardware_has() -> None:
    assert use_bf16("bf16", "cpu")
    assert not use_bf16("fp32", "cuda")
    assert use_bf16("auto", "cpu") in (True, False)


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_only_emulates_bf16_runs_in_fp32(native: bool) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    assert use_bf16("auto", "cuda", supported) == native
    assert use_bf16("bf16", "cuda", supported)


def test_layer_norm_stands_before_and_after_the_core_and_leaves_its_state_alone() -> None:
    plain = make_network(tiny_config(network={"core": "gru"}), VECTOR).core
    normed = make_network(tiny_config(network={"core": "gru", "core_norm": True}), VECTOR).core
    missing, _ = normed.load_state_dict(plain.state_dict(), strict=False)
    assert sorted(missing) == ["after.bias", "after.weight", "before.bias", "before.weight"]
    features, state = torch.randn(2, 3, 8), torch.randn(1, 2, 8)

    def standard(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()

    with torch.no_grad():
        outputs, final = normed(features, state)
        expected, expected_final = plain(standard(features), state)
    torch.testing.assert_close(outputs, standard(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(final, expected_final, rtol=1e-4, atol=1e-5)


def test_layer_norm_and_the_articles_head_are_refused_together() -> None:
    with pytest.raises(ConfigError, match="core_norm does not go with"):
        tiny_config(network={"core_norm": True, "head": "gru_q"})
