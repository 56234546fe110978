from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drqn_dist.config import NetworkConfig
from drqn_dist.errors import EnvError
from drqn_dist.network.torso import ConvTorso, MlpTorso, PixelConv, fold_pixels, make_torso


def seen_by(conv: PixelConv, image: Tensor) -> Tensor:
    return conv(conv.prepare(conv.fold(image), torch.float32))


def run(torso: ConvTorso | MlpTorso, image: Tensor) -> Tensor:
    return torso.features(torso.prepare(torso.fold(image), torch.float32))


def pixels(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


# Sizes at which stride blocks and kernel positions do not come out even.
@pytest.mark.parametrize("size", [(8, 8), (9, 11), (12, 8), (15, 13), (36, 36), (37, 38), (41, 43)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_folded_convolution_equals_a_plain_one(size: tuple[int, int], channels: int) -> None:
    torch.manual_seed(0)
    conv = PixelConv((channels, *size), 1, 4, kernel=8, stride=4)
    image = pixels(2, channels, *size)
    torch.testing.assert_close(seen_by(conv, image), F.conv2d(image / 255, conv.weight, conv.bias, stride=4))
    mean = (torch.rand(channels, *size) * 255).round()
    conv.center(fold_pixels(mean[None], 4, 8)[0])
    expected = F.conv2d((image - mean) / 40, conv.weight, conv.bias, stride=4)
    torch.testing.assert_close(seen_by(conv, image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kernel", "stride"), [(4, 2), (3, 1), (6, 3), (4, 4)])
def test_the_folded_convolution_holds_for_any_kernel_that_is_a_multiple_of_its_stride(kernel: int, stride: int) -> None:
    conv = PixelConv((2, 13, 14), 1, 3, kernel, stride)
    image = pixels(1, 2, 13, 14)
    torch.testing.assert_close(seen_by(conv, image), F.conv2d(image / 255, conv.weight, conv.bias, stride=stride))


def test_the_folded_convolution_has_the_gradients_of_a_plain_one() -> None:
    image = pixels(2, 1, 13, 12)
    conv = PixelConv((1, 13, 12), 1, 4, 8, 4)
    plain = nn.Conv2d(1, 4, 8, 4)
    plain.load_state_dict({name: value for name, value in conv.state_dict().items() if name in ("weight", "bias")})
    seen_by(conv, image).square().sum().backward()
    plain(image / 255).square().sum().backward()
    for mine, other in zip(conv.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, other.grad)


def test_a_centred_torso_sees_nothing_where_the_picture_is_its_mean() -> None:
    torso = make_torso(NetworkConfig(torso="small", torso_units=4), (1, 36, 36), stack=2)
    assert isinstance(torso, ConvTorso)
    conv = torso.first
    conv.center(torch.full(conv.mean.shape, 87.2))
    seen = seen_by(conv, torch.full((1, 2, 36, 36), 87, dtype=torch.uint8))
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
    assert run(torso, pixels(2, 1, 36, 36)).shape == (2, 4)


def test_convolutions_refuse_vectors() -> None:
    with pytest.raises(EnvError, match=r"network.torso small needs images .* shape \[5\]; use --network.torso mlp"):
        make_torso(NetworkConfig(torso="small"), (5,))


def test_auto_takes_convolutions_for_images_and_an_mlp_for_vectors() -> None:
    assert isinstance(make_torso(NetworkConfig(torso_units=4), (1, 84, 84)), ConvTorso)
    assert isinstance(make_torso(NetworkConfig(torso_units=4), (5,)), MlpTorso)


def test_the_nature_torso_is_the_published_one() -> None:
    torso = make_torso(NetworkConfig(torso="nature"), (1, 84, 84), stack=4)
    assert isinstance(torso, ConvTorso)
    shapes = [tuple(p.shape) for p in torso.parameters() if p.dim() > 1]
    assert shapes == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 64 * 7 * 7)]


def test_an_mlp_sees_pixels_between_zero_and_one() -> None:
    torso = make_torso(NetworkConfig(torso="mlp", torso_units=4), (1, 6, 5))
    image = pixels(3, 1, 6, 5)
    torch.testing.assert_close(run(torso, image), run(torso, image / 255))


@pytest.mark.parametrize("channels", [1, 3])
def test_folding_each_frame_and_laying_the_folds_side_by_side_is_folding_the_stack(channels: int) -> None:
    conv = PixelConv((channels, 15, 16), 3, 4, 8, 4)
    conv.center(torch.rand(conv.mean.shape) * 255)
    stack = pixels(2, 3 * channels, 15, 16)
    frames = [conv.prepare(conv.fold(frame), torch.float32) for frame in stack.split(channels, 1)]
    torch.testing.assert_close(conv(torch.cat(frames, -1)), seen_by(conv, stack))


def test_centred_pixels_are_exact_in_bfloat16() -> None:
    conv = PixelConv((1, 12, 12), 1, 4, 8, 4)
    conv.center(torch.rand(conv.mean.shape) * 255)
    image = conv.fold(pixels(4, 1, 12, 12))
    assert torch.equal(conv.prepare(image, torch.bfloat16).float(), conv.prepare(image, torch.float32))


def test_a_standardized_vector_by_hand() -> None:
    """Two numbers, a stack of two: (3 - 1) / (0.99 + 0.01) = 2; (5 - 5) / 0.01 = 0; (-99 - 1) / 1 is clipped to -10;
    6 lies 1 above what never changed: 1 / 0.01 is clipped to 10."""
    torso = MlpTorso(2, 2, 3, standardizes=True)
    raw = torch.tensor([[3.0, 5.0, -99.0, 6.0]])
    assert torch.equal(torso.prepare(raw, torch.float32), raw.clamp(-10, 10))
    torso.standardize(torch.tensor([1.0, 5.0]), torch.tensor([0.99, 0.0]))
    torch.testing.assert_close(torso.prepare(raw, torch.float32), torch.tensor([[2.0, 0.0, -10.0, 10.0]]))
    assert torso.prepare(raw[None, None], torch.bfloat16).shape == (1, 1, 1, 4)
