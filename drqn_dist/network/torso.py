"""Torsos: one observation in, one feature vector out, no memory."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drqn_dist.config import NetworkConfig
from drqn_dist.errors import EnvError

ConvLayers = tuple[tuple[int, int, int], ...]
"""(channels, kernel, stride) of each layer."""

NATURE: ConvLayers = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Mnih et al. 2015."""
SMALL: ConvLayers = ((16, 8, 4), (32, 4, 2), (32, 3, 1))
"""Half of it: about 3.5 times fewer multiplications."""


class PixelConv(nn.Conv2d):
    """The first convolution: uint8 pixels in, kernel a multiple of the stride, no padding.

    It computes exactly conv((x - mean) * scale), but first folds each stride×stride block of pixels into channels.
    The kernel becomes (kernel/stride)² over stride² times the channels, which CPU convolution kernels handle far
    better than one channel with large kernels and strides.

    mean is 0 and scale 1/255 until `center` is called. Where most of a picture never changes (Pong: the ball is a
    dozen pixels of 4,096), the constant background otherwise drowns what matters: with a centred input a
    Pong learner sees the ball within 20 to 30 thousand steps instead of 60 to 120 thousand.
    """

    CENTERED_SCALE = 1.0 / 40.0
    """Centred pixels are mostly 0; this brings a moving object (contrast about 100) to the order of 1."""

    mean: Tensor
    scale: Tensor

    def __init__(self, channels: int, out: int, kernel: int, stride: int, height: int, width: int) -> None:
        super().__init__(channels, out, kernel, stride)
        self.register_buffer("mean", torch.zeros(channels, height, width))
        self.register_buffer("scale", torch.tensor(1.0 / 255.0))

    def center(self, mean: Tensor) -> None:
        """From now on subtracts `mean` (float32 [C, H, W], in pixel values 0..255)."""
        self.mean.copy_(mean)
        self.scale.fill_(self.CENTERED_SCALE)

    def forward(self, input: Tensor) -> Tensor:
        """uint8 [N, C, H, W] → float [N, O, (H - kernel) / stride + 1, …]."""
        s, k = self.stride[0], self.kernel_size[0]
        pixels = _fold(input, s, k).to(self.weight.dtype).sub_(_fold(self.mean[None], s, k))
        channels = self.weight.shape[1]
        kernel = self.weight.view(-1, channels, k // s, s, k // s, s).permute(0, 1, 3, 5, 2, 4)
        kernel = (kernel * self.scale).reshape(-1, channels * s * s, k // s, k // s)
        return F.conv2d(pixels, kernel.to(memory_format=torch.channels_last), self.bias)


def _fold(image: Tensor, s: int, k: int) -> Tensor:
    """[N, C, H, W] → channels-last [N, C·s·s, H/s, W/s]: every s×s block becomes channels.

    Pixels that no position of a k×k kernel with stride s covers are cut off: (H - k) mod s rows.
    """
    n, c, height, width = image.shape
    h, w = (height - k) // s + k // s, (width - k) // s + k // s
    if image.dtype == torch.uint8 and s == 4 and width % 4 == 0 and image.is_contiguous():
        # Four neighbouring pixels always stay together: move them as one 32-bit word.
        words = image.view(torch.int32)[:, :, : h * s, :w].reshape(n, c, h, s, w)
        return words.permute(0, 2, 4, 1, 3).contiguous().view(torch.uint8).view(n, h, w, c * s * s).permute(0, 3, 1, 2)
    blocks = image[:, :, : h * s, : w * s].reshape(n, c, h, s, w, s).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(n, h, w, c * s * s).permute(0, 3, 1, 2)


class ConvTorso(nn.Module):
    """Convolutions and one dense layer, ReLU after each (Mnih et al. 2015)."""

    def __init__(self, shape: tuple[int, ...], layers: ConvLayers, units: int) -> None:
        super().__init__()
        channels, height, width = shape
        blocks: list[nn.Module] = []
        for i, (out, kernel, stride) in enumerate(layers):
            if height < kernel or width < kernel:
                raise EnvError(
                    f"an image of {shape[1]}x{shape[2]} pixels is too small for the convolutions: layer {i + 1} "
                    f"sees {height}x{width} and needs at least {kernel}x{kernel}; use larger images or "
                    "--network.torso small with images of at least 36x36"
                )
            conv = (
                PixelConv(channels, out, kernel, stride, height, width)
                if i == 0
                else nn.Conv2d(channels, out, kernel, stride)
            )
            blocks += [conv, nn.ReLU(inplace=True)]
            channels, height, width = out, (height - kernel) // stride + 1, (width - kernel) // stride + 1
        self.convolutions = nn.Sequential(*blocks)
        for block in blocks:
            if isinstance(block, nn.Conv2d):
                block.weight.data = block.weight.data.contiguous(memory_format=torch.channels_last)
        self.dense = nn.Linear(channels * height * width, units)

    def center(self, mean: Tensor) -> None:
        """From now on subtracts `mean` (float32 [C, H, W]) from every observation."""
        first = self.convolutions[0]
        assert isinstance(first, PixelConv)
        first.center(mean)

    def forward(self, observations: Tensor) -> Tensor:
        """uint8 [N, C, H, W] → float [N, units]."""
        return F.relu(self.dense(self.convolutions(observations).flatten(1)))


class MlpTorso(nn.Module):
    """Two dense layers with ReLU, for vector observations."""

    def __init__(self, size: int, units: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(size, units), nn.ReLU(), nn.Linear(units, units), nn.ReLU())

    def forward(self, observations: Tensor) -> Tensor:
        """float32 [N, ...] → float [N, units]. uint8 images are flattened and divided by 255."""
        flat = observations.flatten(1)
        if flat.dtype == torch.uint8:
            flat = flat.float() / 255.0
        features: Tensor = self.layers(flat)
        return features


def make_torso(config: NetworkConfig, shape: tuple[int, ...]) -> nn.Module:
    """The torso for stacked observations of this shape.

    Raises:
        EnvError: a convolutional torso was asked for vectors, or the image is too small.
    """
    kind: Literal["auto", "nature", "small", "mlp"] = config.torso
    if kind == "auto":
        kind = "nature" if len(shape) == 3 else "mlp"
    if kind == "mlp":
        return MlpTorso(int(torch.Size(shape).numel()), config.torso_units)
    if len(shape) != 3:
        raise EnvError(
            f"network.torso {kind} needs images [C, H, W], but observations have shape {list(shape)}; "
            "use --network.torso mlp"
        )
    return ConvTorso(shape, NATURE if kind == "nature" else SMALL, config.torso_units)
