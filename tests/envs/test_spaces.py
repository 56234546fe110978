from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from drqn_dist.envs.spaces import discrete_actions, observation_encoder
from drqn_dist.errors import EnvError


def image(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


@pytest.mark.parametrize(
    ("space_shape", "expected"),
    [
        ((84, 80, 3), (3, 84, 80)),
        ((3, 84, 80), (3, 84, 80)),
        ((4, 84, 84), (4, 84, 84)),
        ((7, 7, 20), (7, 7, 20)),
        ((10, 10, 7), (7, 10, 10)),
        ((5, 5, 5), (5, 5, 5)),
        ((84, 80), (1, 84, 80)),
    ],
)
def test_image_channels_come_first(space_shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    encoder = observation_encoder(image(*space_shape), "E")
    assert (encoder.shape, encoder.dtype) == (expected, "uint8")
    assert encoder.encode(np.zeros((2, *space_shape), np.uint8)).shape == (2, *expected)


def test_pixels_keep_their_place() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3)).astype(np.uint8)
    encoded = observation_encoder(image(6, 5, 3), "E").encode(pixels)
    assert encoded.dtype == np.uint8
    assert all(
        encoded[n, c, y, x] == pixels[n, y, x, c]
        for n in range(2)
        for y in range(6)
        for x in range(5)
        for c in range(3)
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int32, np.uint8])
def test_one_dimensional_boxes_become_float_vectors(dtype: type) -> None:
    encoder = observation_encoder(spaces.Box(0, 9, (3,), dtype), "E")
    encoded = encoder.encode(np.array([[1, 2, 3]], dtype))
    assert (encoder.shape, encoder.dtype, encoded.dtype) == ((3,), "float32", np.float32)
    assert encoded.tolist() == [[1, 2, 3]]


def test_discrete_observations_become_one_hot_even_when_they_do_not_start_at_zero() -> None:
    encoder = observation_encoder(spaces.Discrete(4, start=-1), "E")
    assert (encoder.shape, encoder.dtype) == ((4,), "float32")
    assert encoder.encode(np.array([-1, 0, 2])).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]


def test_multi_discrete_observations_become_one_hots_side_by_side() -> None:
    encoder = observation_encoder(spaces.MultiDiscrete([3, 2], start=[1, 0]), "E")
    assert encoder.encode(np.array([[1, 0], [3, 1]])).tolist() == [[1, 0, 0, 1, 0], [0, 0, 1, 0, 1]]


def test_multi_binary_observations_become_vectors() -> None:
    encoder = observation_encoder(spaces.MultiBinary(3), "E")
    assert encoder.encode(np.array([[1, 0, 1]], np.int8)).tolist() == [[1, 0, 1]]


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({"camera": image(84, 84, 3), "speed": spaces.Box(0.0, 1.0, (1,))}),
        spaces.Tuple([spaces.Discrete(2)]),
        spaces.Text(5),
        spaces.Box(0.0, 1.0, (84, 84, 3), np.float32),
        spaces.Box(0.0, 1.0, (4, 4), np.float32),
        spaces.Box(0.0, 1.0, ()),
        spaces.MultiBinary((2, 2)),
    ],
    ids=lambda space: f"{type(space).__name__}{space.shape}",
)
def test_other_observation_spaces_are_refused_by_name(space: spaces.Space[object]) -> None:
    with pytest.raises(EnvError) as caught:
        observation_encoder(space, "Strange-v0")
    message = str(caught.value)
    assert message.startswith(f"Strange-v0 has the observation space {type(space).__name__}(")
    assert "supported are Box uint8 [H, W]" in message
    assert "\n" not in message


@pytest.mark.parametrize("space", [spaces.Box(-1.0, 1.0, (2,)), spaces.MultiDiscrete([2, 2])], ids=str)
def test_other_action_spaces_are_refused_by_name(space: spaces.Space[object]) -> None:
    with pytest.raises(EnvError, match=r"Strange-v0 has the action space (Box|MultiDiscrete).*needs a Discrete action"):
        discrete_actions(space, "Strange-v0")
