from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces

from drqn_dist.envs.spaces import action_decoder, batch_of_one, observation_encoder
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


def test_spaces_of_unsigned_numbers_are_counted_as_others_are() -> None:
    space = spaces.MultiDiscrete(np.array([3, 2], np.uint8), dtype=np.uint8, start=np.array([1, 0], np.uint8))
    encoder, decoder = observation_encoder(space, "E"), action_decoder(space, "E")
    assert encoder.encode(np.array([[1, 0], [3, 1]], np.uint8)).tolist() == [[1, 0, 0, 1, 0], [0, 0, 1, 0, 1]]
    decoded = decoder.decode(np.arange(6))
    assert decoded.tolist() == [[1, 0], [1, 1], [2, 0], [2, 1], [3, 0], [3, 1]]
    assert decoded.dtype == np.uint8
    assert all(space.contains(action) for action in decoded)


def test_multi_binary_observations_become_vectors() -> None:
    encoder = observation_encoder(spaces.MultiBinary(3), "E")
    assert encoder.encode(np.array([[1, 0, 1]], np.int8)).tolist() == [[1, 0, 1]]


@pytest.mark.parametrize(
    "space",
    [
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


def test_parts_of_tuples_and_dicts_stand_side_by_side() -> None:
    inner = spaces.Dict({"speed": spaces.Box(-1.0, 1.0, (2,)), "gear": spaces.Discrete(3, start=1)})
    space = spaces.Tuple([spaces.MultiDiscrete([2, 2]), inner])
    encoder = observation_encoder(space, "E")
    assert (encoder.shape, encoder.dtype) == ((2 + 2 + 3 + 2,), "float32")
    gears, speeds = np.array([2, 1]), np.array([[0.5, -1.0], [0.25, 1.0]], np.float32)
    batch = (np.array([[0, 1], [1, 1]]), {"gear": gears, "speed": speeds})
    expected = {  # a Dict made of a dict is sorted by its keys in some versions of Gymnasium, and not in others
        "gear": [[1, 0, 0, 1, 0, 1, 0, 0.5, -1.0], [0, 1, 0, 1, 1, 0, 0, 0.25, 1.0]],
        "speed": [[1, 0, 0, 1, 0.5, -1.0, 0, 1, 0], [0, 1, 0, 1, 0.25, 1.0, 1, 0, 0]],
    }[next(iter(inner.spaces))]
    assert encoder.encode(batch).tolist() == expected
    one = ([0, 1], {"gear": 2, "speed": [0.5, -1.0]})
    assert encoder.encode(batch_of_one(space, one)).tolist() == expected[:1]


def test_an_image_beside_other_observations_is_refused_with_the_reason() -> None:
    space = spaces.Dict({"camera": image(84, 84, 3), "speed": spaces.Box(0.0, 1.0, (1,))})
    with pytest.raises(EnvError, match=r"Strange-v0 has an image, Box\(.*part 'camera'.*env.wrappers"):
        observation_encoder(space, "Strange-v0")


def test_combinations_of_actions_are_numbered_the_last_part_fastest() -> None:
    decoder = action_decoder(spaces.MultiDiscrete([2, 3], start=[0, 5]), "E")
    assert decoder.num_actions == 6
    decoded = decoder.decode(np.arange(6)).tolist()
    assert decoded == [[0, 5], [0, 6], [0, 7], [1, 5], [1, 6], [1, 7]]


@pytest.mark.parametrize("space", [spaces.Box(-1.0, 1.0, (2,)), spaces.MultiDiscrete([16, 17])], ids=str)
def test_other_action_spaces_are_refused_by_name(space: spaces.Space[object]) -> None:
    with pytest.raises(EnvError, match=r"Strange-v0 has the action space (Box|MultiDiscrete).*needs a Discrete action"):
        action_decoder(space, "Strange-v0")
