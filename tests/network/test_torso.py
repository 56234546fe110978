from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drqn_dist.config import NetworkConfig
from drqn_dist.errors import EnvError
from drqn_dist.network.torso import ConvTorso, MlpTorso, PixelConv, make_torso


def pixels(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


# Sizes at which stride blocks and kernel positions do not come out even.
@pytest.mark.parametrize("size", [(8, 8), (9, 11), (12, 8), (15, 13), (36, 36), (37, 38), (41, 43)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_folded_convolution_equals_a_plain_one(size: tuple[int, int], channels: int) -> None:
    torch.manual_seed(0)
    conv = PixelConv(channels, 4, kernel=8, stride=4, height=size[0], width=size[1])
    image = pixels(2, channels, *size)
    torch.testing.assert_close(conv(image), F.conv2d(image / 255, conv.weight, conv.bias, stride=4))
    mean = torch.rand(channels, *size) * 255
    conv.center(mean)
    expected = F.conv2d((image - mean) / 40, conv.weight, conv.bias, stride=4)
    torch.testing.assert_close(conv(image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kernel", "stride"), [(4, 2), (3, 1), (6, 3), (4, 4)])
def test_the_folded_convolution_holds_for_any_kernel_that_is_a_multiple_of_its_stride(kernel: int, stride: int) -> None:
    conv = PixelConv(2, 3, kernel, stride, 13, 14)
    image = pixels(1, 2, 13, 14)
    torch.testing.assert_close(conv(image), F.conv2d(image / 255, conv.weight, conv.bias, stride=stride))


def test_the_folded_convolution_has_the_gradients_of_a_plain_one() -> None:
    image = pixels(2, 1, 13, 12)
    conv = PixelConv(1, 4, 8, 4, 13, 12)
    plain = nn.Conv2d(1, 4, 8, 4)
    plain.load_state_dict({name: value for name, value in conv.state_dict().items() if name in ("weight", "bias")})
    conv(image).square().sum().backward()
    plain(image / 255).square().sum().backward()
    for mine, other in zip(conv.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, other.grad)


def test_a_centred_torso_sees_nothing_where_the_picture_is_its_mean() -> None:
    torso = make_torso(NetworkConfig(torso="small", torso_units=4), (2, 36, 36))
    assert isinstance(torso, ConvTorso)
    mean = torch.full((2, 36, 36), 87.0)
    torso.center(mean)
    conv = torso.convolutions[0]
    seen = conv(torch.full((1, 2, 36, 36), 87, dtype=torch.uint8))
    torch.testing.assert_close(seen, conv.bias.view(1, -1, 1, 1).expand_as(seen))


@pytest.mark.parametrize(
    ("kind", "size", "layer"),
    [
        ("nature", (7, 84), "layer 1 sees 7x84 and needs at least 8x8"),
        ("small", (84, 19), "layer 2 sees 20x3 and needs at least 4x4"),
        ("auto", (35, 35), "layer 3 sees 2x2 and needs at least 3x3"),
    ],
)
def test_an_image_too_small_is_refused_with_the_layer_that_does_not_fit(
    kind: str, size: tuple[int, int], layer: str
) -> None:
    with pytest.raises(EnvError, match=f"{size[0]}x{size[1]} pixels is too small.*{layer}"):
        make_torso(NetworkConfig(torso=kind, torso_units=4), (1, *size))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["nature", "small"])
def test_the_smallest_image_that_the_convolutions_fit_is_36_by_36(kind: str) -> None:
    torso = make_torso(NetworkConfig(torso=kind, torso_units=4), (1, 36, 36))  # type: ignore[arg-type]
    assert torso(pixels(2, 1, 36, 36)).shape == (2, 4)


def test_convolutions_refuse_vectors() -> None:
    with pytest.raises(EnvError, match=r"network.torso small needs images .* shape \[5\]; use --network.torso mlp"):
        make_torso(NetworkConfig(torso="small"), (5,))


def test_auto_takes_convolutions_for_images_and_an_mlp_for_vectors() -> None:
    assert isinstance(make_torso(NetworkConfig(torso_units=4), (1, 84, 84)), ConvTorso)
    assert isinstance(make_torso(NetworkConfig(torso_units=4), (5,)), MlpTorso)


def test_the_nature_torso_is_the_published_one() -> None:
    torso = make_torso(NetworkConfig(torso="nature"), (4, 84, 84))
    assert isinstance(torso, ConvTorso)
    shapes = [tuple(p.shape) for p in torso.parameters() if p.dim() > 1]
    assert shapes == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 64 * 7 * 7)]


def test_an_mlp_sees_pixels_between_zero_and_one() -> None:
    torso = make_torso(NetworkConfig(torso="mlp", torso_units=4), (1, 6, 5))
    image = pixels(3, 1, 6, 5)
    torch.testing.assert_close(torso(image), torso(image / 255))
