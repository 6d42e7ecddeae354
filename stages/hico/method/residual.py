"""R(2+1)D-10 and the mixed 2D-3D ResNet-18 as HiCo uses them (card, "Network").

Layers are named as in the official checkpoints: `conv1` the stem, `conv2` .. `conv5` stages of blocks `res_1` ...,
each with a `conv_branch` and, where width or size change, a `short_cut`. BN eps is 1e-3 throughout.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

EPS = 1e-3
Size = tuple[int, int, int]  # time, height, width


def norm(width: int) -> nn.BatchNorm3d:
    """Batch norm as all layers here have it."""
    return nn.BatchNorm3d(width, eps=EPS)


def conv(width_in: int, width: int, kernel: Size, stride: Size) -> nn.Conv3d:
    """A bias-free convolution with symmetric padding."""
    time, height, wide = (k // 2 for k in kernel)
    return nn.Conv3d(width_in, width, kernel, stride, (time, height, wide), bias=False)


def middle_width(kernel: Size, width_in: int, width: int) -> int:
    """Channels between the two parts of a factorised convolution that give it the parameters of the full one."""
    time, area = kernel[0], kernel[1] * kernel[2]
    return math.floor(time * area * width_in * width / (area * width_in + time * width))


class FactorisedStem(nn.Module):
    """1 x k x k then k x 1 x 1, each with BN and ReLU."""

    def __init__(self, width: int, kernel: Size, stride: Size) -> None:
        super().__init__()
        middle = middle_width(kernel, 3, width)
        self.a1 = conv(3, middle, (1, *kernel[1:]), (1, *stride[1:]))
        self.a1_bn = norm(middle)
        self.a2 = conv(middle, width, (kernel[0], 1, 1), (stride[0], 1, 1))
        self.a2_bn = norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Features `[N, C, T, H, W]`."""
        x = torch.relu(self.a1_bn(self.a1(x)))
        return torch.relu(self.a2_bn(self.a2(x)))


class PooledStem(nn.Module):
    """A convolution with BN and ReLU, then 1x3x3 max-pooling of stride 2."""

    def __init__(self, width: int, kernel: Size, stride: Size) -> None:
        super().__init__()
        self.a = conv(3, width, kernel, stride)
        self.a_bn = norm(width)
        self.pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Features `[N, C, T, H, W]`."""
        return self.pool(torch.relu(self.a_bn(self.a(x))))


class FactorisedBranch(nn.Module):
    """Two factorised convolutions; the ReLU after the last one comes with the shortcut."""

    def __init__(self, width_in: int, width: int, kernel: Size, stride: Size) -> None:
        super().__init__()
        for name, before, steps in (("a", width_in, stride), ("b", width, (1, 1, 1))):
            middle = middle_width(kernel, before, width)
            self.add_module(f"{name}1", conv(before, middle, (1, *kernel[1:]), (1, *steps[1:])))
            self.add_module(f"{name}1_bn", norm(middle))
            self.add_module(f"{name}2", conv(middle, width, (kernel[0], 1, 1), (steps[0], 1, 1)))
            self.add_module(f"{name}2_bn", norm(width))

    def forward(self, x: Tensor) -> Tensor:
        """Features `[N, C, T, H, W]`."""
        for name in ("a1", "a2", "b1"):
            x = torch.relu(self.get_submodule(f"{name}_bn")(self.get_submodule(name)(x)))
        return self.get_submodule("b2_bn")(self.get_submodule("b2")(x))


class FullBranch(nn.Module):
    """Two full convolutions."""

    def __init__(self, width_in: int, width: int, kernel: Size, stride: Size) -> None:
        super().__init__()
        self.a = conv(width_in, width, kernel, stride)
        self.a_bn = norm(width)
        self.b = conv(width, width, kernel, (1, 1, 1))
        self.b_bn = norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Features `[N, C, T, H, W]`."""
        return self.b_bn(self.b(torch.relu(self.a_bn(self.a(x)))))


Branch = Callable[[int, int, Size, Size], nn.Module]


class ResidualBlock(nn.Module):
    """A branch and a shortcut, added and rectified."""

    def __init__(self, branch: Branch, width_in: int, width: int, kernel: Size, stride: Size) -> None:
        super().__init__()
        self.changes = width_in != width or stride != (1, 1, 1)
        if self.changes:
            self.short_cut = nn.Conv3d(width_in, width, 1, stride, bias=False)
            self.short_cut_bn = norm(width)
        self.conv_branch = branch(width_in, width, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Features `[N, C, T, H, W]`."""
        short = self.short_cut_bn(self.short_cut(x)) if self.changes else x
        return torch.relu(short + self.conv_branch(x))


class VideoResNet(nn.Module):
    """A stem and four stages; clips `[N, 3, T, H, W]` to features `[N, width, T', H', W']`."""

    def __init__(
        self,
        stem: nn.Module,
        branch: Branch,
        widths: Sequence[int],
        kernels: Sequence[Size],
        strides: Sequence[Size],
        depth: int,
    ) -> None:
        super().__init__()
        self.conv1 = stem
        before = widths[0]
        for stage, (width, kernel, stride) in enumerate(zip(widths[1:], kernels, strides, strict=True), 2):
            blocks = nn.Sequential()
            for number in range(1, depth + 1):
                step = stride if number == 1 else (1, 1, 1)
                blocks.add_module(f"res_{number}", ResidualBlock(branch, before, width, kernel, step))
                before = width
            self.add_module(f"conv{stage}", blocks)
        self.width = before

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        """Features `[N, C, T, H, W]`."""
        x = self.conv1(x_NCTHW)
        for stage in range(2, 6):
            x = self.get_submodule(f"conv{stage}")(x)
        return x


def r2plus1d10(widths: Sequence[int] = (64, 64, 128, 256, 512)) -> VideoResNet:
    """R(2+1)D-10: factorised everywhere, one block a stage, no pooling after the stem."""
    stem = FactorisedStem(widths[0], (3, 7, 7), (1, 2, 2))
    strides = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    return VideoResNet(stem, FactorisedBranch, widths, ((3, 3, 3),) * 4, strides, 1)


def mixed_resnet18(widths: Sequence[int] = (64, 64, 128, 256, 256)) -> VideoResNet:
    """Mixed 2D-3D ResNet-18: 1x3x3 in the first two stages, 3x3x3 in the last two, which also halve the time."""
    stem = PooledStem(widths[0], (1, 7, 7), (1, 2, 2))
    kernels = ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3))
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2))
    return VideoResNet(stem, FullBranch, widths, kernels, strides, 2)
