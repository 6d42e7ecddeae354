"""Convolution blocks with TensorFlow's SAME padding: spatial ones with time in the batch, temporal ones on token sequences.

Shapes: N = B * T frames, C channels, H x W pixels, D token width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BN_EPS, BN_MOMENTUM = 1e-3, 0.01  # TensorFlow's
INCEPTION_SHARES = (160, 112, 224, 24, 64, 64)  # of 512, in the temporal inception block


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and behind an axis of `size` such that `ceil(size / stride)` outputs come out."""
    total = max(kernel - (size % stride or stride), 0)
    return total // 2, total - total // 2


def _padded(x: Tensor, kernel: int, stride: int, axes: int) -> tuple[Tensor, int]:
    """`x` and the padding its operator shall add itself: symmetric padding needs no copy."""
    pads = [same_padding(size, kernel, stride) for size in reversed(x.shape[-axes:])]
    if len(set(pads)) == 1 and pads[0][0] == pads[0][1]:
        return x, pads[0][0]
    return F.pad(x, [side for pad in pads for side in pad]), 0


class SpatialConv(nn.Module):
    """k x k convolution of frames without bias, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, bias=False)
        self.bn = nn.BatchNorm2d(channels_out, BN_EPS, BN_MOMENTUM)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """`[N, C', ceil(H / stride), ceil(W / stride)]`."""
        x_NCHW, padding = _padded(x_NCHW, self.kernel, self.stride, 2)
        if self.training:
            out_NCHW = self.bn(F.conv2d(x_NCHW, self.conv.weight, None, self.stride, padding))
        else:  # the norm is a scale and a shift then: folded into the weights they cost no pass over the features
            scale_C = self.bn.weight * torch.rsqrt(self.bn.get_buffer("running_var") + self.bn.eps)
            shift_C = self.bn.bias - self.bn.get_buffer("running_mean") * scale_C
            weight = self.conv.weight * scale_C[:, None, None, None]
            out_NCHW = F.conv2d(x_NCHW, weight, shift_C, self.stride, padding)
        return F.relu(out_NCHW, inplace=True)


class TemporalConv(nn.Module):
    """Convolution over time without bias, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels_in, channels_out, kernel, padding="same", bias=False)
        self.bn = nn.BatchNorm1d(channels_out, BN_EPS, BN_MOMENTUM)

    def forward(self, x_BDT: Tensor) -> Tensor:
        """`[B, D', T]`."""
        return F.relu(self.bn(self.conv(x_BDT)))


class SamePool(nn.Module):
    """k x k max pooling of frames with zeros outside."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """`[N, C, ceil(H / stride), ceil(W / stride)]`."""
        if not torch.is_grad_enabled():
            for axis in (3, 2):
                x_NCHW = _pool_axis(x_NCHW, axis, self.kernel, self.stride)
            return x_NCHW
        pads = [same_padding(size, self.kernel, self.stride) for size in reversed(x_NCHW.shape[-2:])]
        x_NCHW = F.pad(x_NCHW, [side for pad in pads for side in pad])
        return F.max_pool2d(x_NCHW, self.kernel, self.stride)


def _pool_axis(x: Tensor, axis: int, kernel: int, stride: int) -> Tensor:
    """Maximum over windows of one axis with zeros outside, from shifted views: what max pooling costs is its indices."""
    size = x.shape[axis]
    before, _ = same_padding(size, kernel, stride)
    count = -(-size // stride)

    def shifted(offset: int, low: int, high: int) -> Tensor:
        """What windows low .. high - 1 hold at `offset` from their middle."""
        steps = slice(low * stride + offset, (high - 1) * stride + offset + 1, stride)
        return x[(slice(None),) * axis + (steps,)]

    pooled = shifted(0, 0, count).clone()
    for offset in (o for o in range(-before, kernel - before) if o):
        low, high = max(0, -(offset // stride)), min(count, (size - 1 - offset) // stride + 1)
        inside = pooled.narrow(axis, low, high - low)
        torch.maximum(inside, shifted(offset, low, high), out=inside)
        for first, length in ((0, low), (high, count - high)):
            pooled.narrow(axis, first, length).clamp_(min=0)
    return pooled


def pool_time(x_BTX: Tensor) -> Tensor:
    """Maximum over three neighbouring frames (axis 1) with zeros outside; any axes may follow."""
    before, after = torch.zeros_like(x_BTX[:, :1]), torch.zeros_like(x_BTX[:, :1])
    padded = torch.cat([before, x_BTX, after], 1)
    return torch.maximum(torch.maximum(padded[:, :-2], padded[:, 1:-1]), padded[:, 2:])


class SpatialInception(nn.Module):
    """1x1 | 1x1, 3x3 | 1x1, 3x3 | max pool, 1x1.

    The released pool looks at 3 x 3 x 3 pixels and so at the neighbouring frames; `strict_spatial` keeps it in its own.
    """

    def __init__(self, channels_in: int, widths: Sequence[int], strict_spatial: bool) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = widths
        self.strict_spatial = strict_spatial
        self.b0 = SpatialConv(channels_in, b0, 1)
        self.b1a, self.b1b = SpatialConv(channels_in, b1a, 1), SpatialConv(b1a, b1b, 3)
        self.b2a, self.b2b = SpatialConv(channels_in, b2a, 1), SpatialConv(b2a, b2b, 3)
        self.pool = SamePool(3, 1)
        self.b3b = SpatialConv(channels_in, b3b, 1)

    def forward(self, x_NCHW: Tensor, frames: int) -> Tensor:
        """`[N, b0 + b1b + b2b + b3b, H, W]`; `frames` is T, for the pool over time."""
        pooled_NCHW = self.pool(x_NCHW)
        if not self.strict_spatial:
            pooled_NCHW = pool_time(pooled_NCHW.unflatten(0, (-1, frames))).flatten(0, 1)
        branches = [self.b0(x_NCHW), self.b1b(self.b1a(x_NCHW)), self.b2b(self.b2a(x_NCHW))]
        return torch.cat([*branches, self.b3b(pooled_NCHW)], 1)


class TemporalInception(nn.Module):
    """1 | 1, 3 | 1, 3 | max pool 3, 1 over time."""

    def __init__(self, channels_in: int, widths: Sequence[int]) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = widths
        self.b0 = TemporalConv(channels_in, b0, 1)
        self.b1a, self.b1b = TemporalConv(channels_in, b1a, 1), TemporalConv(b1a, b1b, 3)
        self.b2a, self.b2b = TemporalConv(channels_in, b2a, 1), TemporalConv(b2a, b2b, 3)
        self.b3b = TemporalConv(channels_in, b3b, 1)

    def forward(self, x_BDT: Tensor) -> Tensor:
        """`[B, b0 + b1b + b2b + b3b, T]`."""
        pooled_BDT = pool_time(x_BDT.transpose(1, 2)).transpose(1, 2)
        branches = [self.b0(x_BDT), self.b1b(self.b1a(x_BDT)), self.b2b(self.b2a(x_BDT))]
        return torch.cat([*branches, self.b3b(pooled_BDT)], 1)


def inception_widths(dim: int) -> list[int]:
    """Widths of a temporal inception block that keeps `dim` channels, in the released proportions.

    Raises:
        ValueError: `dim` is no multiple of 64, so that the proportions are no whole numbers.
    """
    if dim % 64:
        raise ValueError(f"token width {dim}: must be a multiple of 64")
    return [share * dim // 512 for share in INCEPTION_SHARES]
