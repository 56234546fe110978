"""Torsos: one observation in, one feature vector out, no memory.

A torso works in three steps, so that a learner does each of them once per frame and not once per use:

    fold      a raw frame → the layout that the torso reads; bytes are moved, nothing is computed. Frames are kept so.
    prepare   folded frames → numbers of the compute type, centred
    features  prepared frames, stacked along their last axis → float [N, units]
"""

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
    """The first convolution of an image: kernel a multiple of the stride, no padding, on folded pixels.

    It computes exactly conv((x - mean) * scale), but with each stride×stride block of pixels folded into channels:
    the kernel becomes (kernel/stride)² over stride² times the channels, which CPU convolution kernels handle far
    better than one channel with large kernels and strides.

    mean is 0 and scale 1/255 until `center` is called. Where most of a picture never changes (Pong: the ball is a
    dozen pixels of 4,096), the constant background otherwise drowns what matters: with a centred input a
    Pong learner sees the ball within 20 to 30 thousand steps instead of 60 to 120 thousand.
    """

    CENTERED_SCALE = 1.0 / 40.0
    """Centred pixels are mostly 0; this brings a moving object (contrast about 100) to the order of 1."""

    mean: Tensor
    scale: Tensor

    def __init__(self, shape: tuple[int, int, int], stack: int, out: int, kernel: int, stride: int) -> None:
        """
        Args:
            shape: [C, H, W] of one frame.
            stack: frames of one input.
        """
        channels, height, width = shape
        super().__init__(channels * stack, out, kernel, stride)
        empty = fold_pixels(torch.empty(1, channels, height, width, device="cpu"), stride, kernel)
        self.register_buffer("mean", torch.zeros(empty.shape[1:]))
        self.register_buffer("scale", torch.tensor(1.0 / 255.0))
        self.frozen_kernel: Tensor | None = None
        """`kernel()` as it was when the weights last changed, where they change seldom."""

    def fold(self, frames: Tensor) -> Tensor:
        """uint8 [N, C, H, W] → uint8 [N, h, w, C·s·s]."""
        return fold_pixels(frames, self.stride[0], self.kernel_size[0])

    def center(self, mean: Tensor) -> None:
        """From now on subtracts `mean`, float32 [h, w, C·s·s] in pixel values, in whole grey levels: differences are
        then exact in bfloat16 too."""
        self.mean.copy_(mean.round())
        self.scale.fill_(self.CENTERED_SCALE)

    def prepare(self, folded: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 [..., h, w, stack·C·s·s] → centred pixels of the same shape."""
        pixels, mean = folded.to(dtype), self.mean.to(dtype)
        if folded.shape[-1] == mean.shape[-1]:
            return pixels.sub_(mean)
        apart = pixels.view(*folded.shape[:-1], -1, mean.shape[-1])
        return apart.sub_(mean.unsqueeze(-2)).view(folded.shape)

    def kernel(self) -> Tensor:
        """The weights for prepared pixels, float32 [O, stack·C·s·s, k/s, k/s]."""
        s, k = self.stride[0], self.kernel_size[0]
        channels = self.weight.shape[1]
        folded = self.weight.view(-1, channels, k // s, s, k // s, s).permute(0, 1, 3, 5, 2, 4)
        folded = (folded * self.scale).reshape(-1, channels * s * s, k // s, k // s)
        return folded.contiguous(memory_format=torch.channels_last)

    def forward(self, input: Tensor) -> Tensor:
        """Prepared pixels [N, h, w, stack·C·s·s] → float [N, O, (H - kernel) / stride + 1, …]."""
        kernel = self.kernel() if self.frozen_kernel is None else self.frozen_kernel
        return F.conv2d(input.permute(0, 3, 1, 2), kernel, self.bias)


def fold_pixels(image: Tensor, s: int, k: int) -> Tensor:
    """[N, C, H, W] → [N, H/s, W/s, C·s·s]: every s×s block becomes channels.

    Pixels that no position of a k×k kernel with stride s covers are cut off: (H - k) mod s rows.
    """
    n, c, height, width = image.shape
    h, w = (height - k) // s + k // s, (width - k) // s + k // s
    if image.dtype == torch.uint8 and s == 4 and width % 4 == 0 and image.is_contiguous():
        # Four neighbouring pixels always stay together: move them as one 32-bit word.
        words = image.view(torch.int32)[:, :, : h * s, :w].reshape(n, c, h, s, w)
        return words.permute(0, 2, 4, 1, 3).contiguous().view(torch.uint8).view(n, h, w, c * s * s)
    blocks = image[:, :, : h * s, : w * s].reshape(n, c, h, s, w, s).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(n, h, w, c * s * s)


class ConvTorso(nn.Module):
    """Convolutions and one dense layer, ReLU after each (Mnih et al. 2015)."""

    def __init__(self, shape: tuple[int, int, int], stack: int, layers: ConvLayers, units: int) -> None:
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
            conv = PixelConv(shape, stack, out, kernel, stride) if i == 0 else nn.Conv2d(channels, out, kernel, stride)
            blocks += [conv, nn.ReLU(inplace=True)]
            channels, height, width = out, (height - kernel) // stride + 1, (width - kernel) // stride + 1
        self.convolutions = nn.Sequential(*blocks)
        for block in blocks:
            if isinstance(block, nn.Conv2d):
                block.weight.data = block.weight.data.contiguous(memory_format=torch.channels_last)
        self.dense = nn.Linear(channels * height * width, units)

    @property
    def first(self) -> PixelConv:
        first = self.convolutions[0]
        assert isinstance(first, PixelConv)
        return first

    def fold(self, frames: Tensor) -> Tensor:
        """uint8 [N, C, H, W] → uint8 [N, h, w, C·s·s]."""
        return self.first.fold(frames)

    def prepare(self, folded: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 [..., h, w, stack·C·s·s] → centred pixels."""
        return self.first.prepare(folded, dtype)

    def features(self, prepared: Tensor) -> Tensor:
        """[N, h, w, stack·C·s·s] → float [N, units]."""
        planes = self.convolutions(prepared)
        # Flattened as they lie in memory, channels last: nothing is copied.
        return F.relu(self.dense(planes.permute(0, 2, 3, 1).flatten(1)))


class MlpTorso(nn.Module):
    """Two dense layers with ReLU, for vector observations.

    Where it standardizes, it sees (x - mean) * scale, clipped to ±10, once `standardize` was called.
    """

    CLIP = 10.0
    DEVIATION_FLOOR = 0.01
    """Added to deviations: what never changed before the first update and does later counts a hundredfold at most, and
    so enters at the clip."""

    mean: Tensor
    scale: Tensor

    def __init__(self, size: int, stack: int, units: int, standardizes: bool = False) -> None:
        """
        Args:
            size: D, numbers of one observation.
            stack: observations of one input.
            standardizes: keep mean and scale with the weights.
        """
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(size * stack, units), nn.ReLU(), nn.Linear(units, units), nn.ReLU())
        self.standardizes = standardizes
        if standardizes:
            self.register_buffer("mean", torch.zeros(size))
            self.register_buffer("scale", torch.ones(size))

    def standardize(self, mean: Tensor, deviation: Tensor) -> None:
        """From now on subtracts `mean` and divides by `deviation`, float32 [D] each."""
        self.mean.copy_(mean)
        self.scale.copy_(1.0 / (deviation + self.DEVIATION_FLOOR))

    def fold(self, frames: Tensor) -> Tensor:
        """[N, ...] → [N, D]."""
        return frames.flatten(1)

    def prepare(self, folded: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 pixels become 0..1; standardized where that is wanted."""
        values = folded.to(torch.float32) / 255.0 if folded.dtype == torch.uint8 else folded
        if self.standardizes:
            apart = values.view(*values.shape[:-1], -1, len(self.mean))
            values = ((apart - self.mean) * self.scale).clamp(-self.CLIP, self.CLIP).flatten(-2)
        return values.to(dtype)

    def features(self, prepared: Tensor) -> Tensor:
        """float32 [N, stack·D] → float [N, units]."""
        features: Tensor = self.layers(prepared)
        return features


def make_torso(config: NetworkConfig, shape: tuple[int, ...], stack: int = 1) -> ConvTorso | MlpTorso:
    """The torso for stacks of so many frames of this shape.

    Raises:
        EnvError: a convolutional torso was asked for vectors, or the image is too small.
    """
    kind: Literal["auto", "nature", "small", "mlp"] = config.torso
    if kind == "auto":
        kind = "nature" if len(shape) == 3 else "mlp"
    if kind == "mlp":
        return MlpTorso(int(torch.Size(shape).numel()), stack, config.torso_units, config.standardize_vectors)
    if len(shape) != 3:
        raise EnvError(
            f"network.torso {kind} needs images [C, H, W], but observations have shape {list(shape)}; "
            "use --network.torso mlp"
        )
    layers = NATURE if kind == "nature" else SMALL
    return ConvTorso((shape[0], shape[1], shape[2]), stack, layers, config.torso_units)
