"""Augmentation of clips on the device, a batch at a time; what is drawn for a clip holds for all its frames.

Letters: B clips, T frames, C = 3 or 1 channels, H and W of the input, S size of the output.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

LUMA = (0.299, 0.587, 0.114)
COLOURS = ("brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True)
class Jitter:
    """Colour jitter: factors U(1 - x, 1 + x), hue shift U(-hue, hue), in an order drawn for each clip."""

    probability: float
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0


@dataclass(frozen=True)
class Draws:
    """What was drawn for B clips, on the CPU: numbers in 0 .. 1, and the order of the four colour operations."""

    uniform_BK: Tensor
    order_B4: Tensor


# columns of `Draws.uniform_BK`
AREA, ASPECT, X, Y, FLIP, ROTATE, ANGLE, JITTER, GRAY, BLUR, SIGMA = range(11)
FACTOR = 11  # and the three after it


@dataclass(frozen=True)
class ClipAugment:
    """Random resized crop, flip, rotation, colour, blur; then `(x - mean) / std`.

    Args:
        size: height and width of the output.
        area: range of the crop's share of the frame's area.
        aspect: range of the crop's width over its height, log-uniform.
        flip: probability of a mirrored clip.
        rotation: (probability, largest angle in degrees).
        jitter: colour jitter, or None.
        gray: probability of a grey clip; `gray_first` before the jitter, else after it.
        blur: (probability, smallest and largest sigma in pixels of the output), or None.
    """

    size: int
    area: tuple[float, float] = (1.0, 1.0)
    aspect: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    rotation: tuple[float, float] = (0.0, 0.0)
    jitter: Jitter | None = None
    gray: float = 0.0
    gray_first: bool = False
    blur: tuple[float, float, float] | None = None
    mean: float = 0.45
    std: float = 0.225

    def draw(self, batch: int, generator: Generator) -> Draws:
        """Draw for `batch` clips; always as many numbers, whatever is in use."""
        uniform_BK = torch.rand(batch, FACTOR + 4, generator=generator)
        order_B4 = torch.rand(batch, 4, generator=generator).argsort(1)
        return Draws(uniform_BK, order_B4)

    def __call__(self, clips_BTCHW: Tensor, draws: Draws) -> Tensor:
        """uint8 clips to float32 `[B, C, T, S, S]`."""
        x_BTCHW = self._cropped(clips_BTCHW, draws)
        turns: list[Callable[[Tensor, Draws], Tensor]] = [self._jittered, self._grayed]
        for turn in reversed(turns) if self.gray_first else turns:
            x_BTCHW = turn(x_BTCHW, draws)
        x_BTCHW = self._blurred(x_BTCHW, draws)
        return ((x_BTCHW - self.mean) / self.std).transpose(1, 2).contiguous()

    def _cropped(self, clips_BTCHW: Tensor, draws: Draws) -> Tensor:
        """Crop, flip and rotation in one sampling of the input (bilinear); floats in 0 .. 1."""
        batch, frames, channels, height, width = clips_BTCHW.shape
        u = draws.uniform_BK
        area_B = (self.area[0] + (self.area[1] - self.area[0]) * u[:, AREA]) * height * width
        low, high = (math.log(value) for value in self.aspect)
        aspect_B = torch.exp(low + (high - low) * u[:, ASPECT])
        wide_B = torch.sqrt(area_B * aspect_B).clamp(max=width) / width  # half widths, where the frame's is 1
        tall_B = torch.sqrt(area_B / aspect_B).clamp(max=height) / height
        x_B, y_B = (1 - wide_B) * (2 * u[:, X] - 1), (1 - tall_B) * (2 * u[:, Y] - 1)
        turned_B = (u[:, ROTATE] < self.rotation[0]).float()
        angle_B = turned_B * (2 * u[:, ANGLE] - 1) * math.radians(self.rotation[1])
        mirror_B = 1 - 2 * (u[:, FLIP] < self.flip).float()
        cos_B, sin_B = torch.cos(angle_B), torch.sin(angle_B)
        ratio = height / width  # a turn is one of pixels, not of the frame's -1 .. 1
        theta_B23 = torch.stack(
            [
                torch.stack([mirror_B * wide_B * cos_B, -tall_B * sin_B * ratio, x_B], 1),
                torch.stack([mirror_B * wide_B * sin_B / ratio, tall_B * cos_B, y_B], 1),
            ],
            1,
        )
        grid_BSS2 = F.affine_grid(theta_B23, [batch, 1, self.size, self.size], align_corners=False)
        folded = clips_BTCHW.reshape(batch, frames * channels, height, width).float() / 255
        sampled = F.grid_sample(
            folded, grid_BSS2.to(folded.device), mode="bilinear", padding_mode="zeros" if self.rotation[0] else "border",
            align_corners=False,
        )  # fmt: skip
        return sampled.view(batch, frames, channels, self.size, self.size)

    def _jittered(self, x_BTCHW: Tensor, draws: Draws) -> Tensor:
        if self.jitter is None:
            return x_BTCHW
        u = draws.uniform_BK
        strength_4 = torch.tensor([getattr(self.jitter, name) for name in COLOURS])
        factor_B4 = 1 + (2 * u[:, FACTOR : FACTOR + 4] - 1) * strength_4
        factor_B4[:, 3] -= 1  # hue is a shift
        chosen_B = u[:, JITTER] < self.jitter.probability
        functions = (brightness, contrast, saturation, hue)
        x_BTCHW = x_BTCHW.clone()
        for turn in range(4):
            for number, function in enumerate(functions):
                rows_b = torch.nonzero(chosen_B & (draws.order_B4[:, turn] == number))[:, 0]
                if strength_4[number] > 0 and len(rows_b):
                    rows = rows_b.to(x_BTCHW.device)
                    x_BTCHW[rows] = function(x_BTCHW[rows], factor_B4[rows_b, number].to(x_BTCHW.device))
        return x_BTCHW

    def _grayed(self, x_BTCHW: Tensor, draws: Draws) -> Tensor:
        if self.gray == 0:
            return x_BTCHW
        chosen_B = (draws.uniform_BK[:, GRAY] < self.gray).to(x_BTCHW.device)
        return torch.where(_each(chosen_B), luma(x_BTCHW).expand_as(x_BTCHW), x_BTCHW)

    def _blurred(self, x_BTCHW: Tensor, draws: Draws) -> Tensor:
        """Gaussian blur, separable; one kernel for each clip, so that its frames are groups of one convolution."""
        if self.blur is None:
            return x_BTCHW
        probability, low, high = self.blur
        u = draws.uniform_BK
        radius = math.ceil(2 * high)
        sigma_B = low + (high - low) * u[:, SIGMA]
        place_K = torch.arange(-radius, radius + 1)
        kernel_BK = torch.softmax(-(place_K**2) / (2 * sigma_B[:, None] ** 2), 1)
        off_B = u[:, BLUR] >= probability
        kernel_BK[off_B] = (place_K == 0).float()
        frames, channels, height, width = x_BTCHW.shape[1:]
        kernels = kernel_BK.repeat_interleave(frames * channels, 0).to(x_BTCHW.device)[:, None, :, None]
        x = x_BTCHW.reshape(1, -1, height, width)
        for weight in (kernels, kernels.transpose(2, 3)):
            pad = (0, 0, radius, radius) if weight.shape[2] > 1 else (radius, radius, 0, 0)
            x = F.conv2d(F.pad(x, pad, mode="replicate"), weight, groups=x.shape[1])
        return x.view(x_BTCHW.shape)


def centre_crop(
    clips_BTCHW: Tensor, size: int, share: float = 224 / 256, mean: float = 0.45, std: float = 0.225
) -> Tensor:
    """The middle square, `share` of the short side wide, as float32 `[B, C, T, size, size]`: for testing."""
    batch, frames, channels, height, width = clips_BTCHW.shape
    side = round(share * min(height, width))
    top, left = (height - side) // 2, (width - side) // 2
    square = clips_BTCHW[..., top : top + side, left : left + side]
    x = square.reshape(batch, frames * channels, side, side).float() / 255
    if side != size:
        x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
    x_BTCHW = x.view(batch, frames, channels, size, size)
    return ((x_BTCHW - mean) / std).transpose(1, 2).contiguous()


def luma(x_BTCHW: Tensor) -> Tensor:
    """Grey value `[B, T, 1, H, W]` of RGB clips."""
    weight = x_BTCHW.new_tensor(LUMA).view(3, 1, 1)
    return (x_BTCHW * weight).sum(2, keepdim=True)


def brightness(x_BTCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Scale the values, in 0 .. 1."""
    return (x_BTCHW * _each(factor_B)).clamp(0, 1)


def contrast(x_BTCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Stretch the values around the grey mean of each frame (as HiCo's official code does; its factor is the clip's)."""
    mean_BT111 = luma(x_BTCHW).mean((2, 3, 4), keepdim=True)
    return torch.lerp(mean_BT111, x_BTCHW, _each(factor_B)).clamp(0, 1)


def saturation(x_BTCHW: Tensor, factor_B: Tensor) -> Tensor:
    """Stretch the values around each pixel's grey value."""
    return torch.lerp(luma(x_BTCHW), x_BTCHW, _each(factor_B)).clamp(0, 1)


def hue(x_BTCHW: Tensor, shift_B: Tensor) -> Tensor:
    """Turn the hue by `shift_B` of a full circle."""
    red, green, blue = x_BTCHW.unbind(2)
    value = x_BTCHW.amax(2)
    chroma = value - x_BTCHW.amin(2)
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sector = torch.where(
        value == red,
        (green - blue) / safe % 6,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    turned = (sector + 6 * shift_B.view(-1, 1, 1, 1)) % 6
    parts = []
    for start in (5.0, 3.0, 1.0):  # red, green and blue fall off around their own place on the circle
        k = (start + turned) % 6
        parts.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(parts, 2)


def _each(values_B: Tensor) -> Tensor:
    """One value for each clip, shaped to multiply it."""
    return values_B.view(-1, 1, 1, 1, 1)
