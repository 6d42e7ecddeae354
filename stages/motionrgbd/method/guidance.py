"""Guidance maps: where a clip moves, by causal rank pooling (paper, FRP; official lib/datasets/base.py).

Shapes: B clips, T frames, C channels (3), H x W pixels, w window, S = T - w + 1 windows, N of them at once.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)
CHUNK_NUMBERS = 2**19  # of frames that are pooled at once: 2 MiB
EPSILON = 1e-5  # what the released code divides a map of zeros by


def rank_pool_guidance(x_BTCHW: Tensor, window: int) -> Tensor:
    """Guidance `[B, T, H, W]` in [0, 2] of normalised frames; the first `window - 1` maps are zero.

    A few frames at a time, so that all passes but the first one over the frames find their data in the cache.

    Args:
        x_BTCHW: frames, `(pixel - 127.5) / 128`.
        window: frames that a map looks back on, its own included.
    """
    batch, frames, _, height, width = x_BTCHW.shape
    maps_BTHW = x_BTCHW.new_zeros(batch, frames, height, width)
    if frames >= window:
        chunk = max(1, CHUNK_NUMBERS // x_BTCHW[:, 0].numel())
        at = window - 1
        for pooled_BNCHW in rank_pool(x_BTCHW, window, chunk):
            count = pooled_BNCHW.shape[1]
            _write_maps(pooled_BNCHW, maps_BTHW[:, at : at + count])
            at += count
    return maps_BTHW


def rank_pool(x_BTCHW: Tensor, window: int, chunk: int) -> Iterator[Tensor]:
    """`relu(sum_i (2i - w - 1) x_i)` of each window, i = 1..w: pieces `[B, N, C, H, W]` of up to `chunk` windows.

    A piece overwrites the one before. From a window to the next, the plain sum S of its frames given, the weights of all
    frames fall by 2: with `out` leaving and `into` coming, pooled += (w + 1) out - 2 S + (w - 1) into. So the cost does not
    depend on the window. (Prefix sums over the clip take as many operations, but go through memory and need float64,
    since their differences cancel.) The sums of `uint8` frames are exact, so that what stands still gives exactly zero.
    """
    starts = x_BTCHW.shape[1] - window + 1
    piece_BNCHW = torch.empty_like(x_BTCHW[:, : min(chunk, starts)])
    total_BCHW = x_BTCHW[:, :window].sum(1)
    pooled_BCHW = sum_of_window(x_BTCHW[:, :window])
    for start in range(starts):
        if start:
            out_BCHW, into_BCHW = x_BTCHW[:, start - 1], x_BTCHW[:, start + window - 1]
            pooled_BCHW.sub_(total_BCHW, alpha=2).add_(out_BCHW, alpha=window + 1)
            pooled_BCHW.add_(into_BCHW, alpha=window - 1)
            total_BCHW.sub_(out_BCHW).add_(into_BCHW)
        torch.clamp_min(pooled_BCHW, 0, out=piece_BNCHW[:, start % chunk])
        if start % chunk == chunk - 1 or start == starts - 1:
            yield piece_BNCHW[:, : start % chunk + 1]


def sum_of_window(x_BwCHW: Tensor) -> Tensor:
    """`sum_i (2i - w - 1) x_i` of one window: `[B, C, H, W]`."""
    window = x_BwCHW.shape[1]
    pooled_BCHW = torch.zeros_like(x_BwCHW[:, 0])
    for place in range(1, window + 1):
        pooled_BCHW.add_(x_BwCHW[:, place - 1], alpha=2 * place - window - 1)
    return pooled_BCHW


def _write_maps(pooled_BNCHW: Tensor, maps_BNHW: Tensor) -> None:
    """Maps of pooled windows: scaled to [0, 1], grey, and the opened salient part of it."""
    low_BN11, high_BN11 = (
        extreme[:, :, None, None] for extreme in (pooled_BNCHW.amin((2, 3, 4)), pooled_BNCHW.amax((2, 3, 4)))
    )
    # grey of the scaled colours is the scaled grey: the three channels are read once
    grey_BNHW = pooled_BNCHW[:, :, 0] * LUMA[0]
    for weight, channel_BNHW in zip(LUMA[1:], pooled_BNCHW.unbind(2)[1:], strict=True):
        grey_BNHW.add_(channel_BNHW, alpha=weight)
    grey_BNHW.sub_(low_BN11 * sum(LUMA)).div_(_divisor(high_BN11 - low_BN11))
    # what is below the mean is cut after the opening: minima and maxima do not mind the order
    salient_BNHW = dilate(erode(grey_BNHW, 2), 3)
    above_BNHW = torch.empty_like(salient_BNHW)  # of floats: masks of bools are ten times as slow on a CPU
    torch.gt(salient_BNHW, grey_BNHW.mean((2, 3), keepdim=True), out=above_BNHW)
    salient_BNHW.mul_(above_BNHW)
    salient_BNHW.sub_(salient_BNHW.amin((2, 3), keepdim=True))
    salient_BNHW.div_(_divisor(salient_BNHW.amax((2, 3), keepdim=True)))
    torch.mul(grey_BNHW.add_(salient_BNHW), salient_BNHW, out=maps_BNHW)


def _divisor(height: Tensor) -> Tensor:
    return torch.where(height == 0, EPSILON, height)


def erode(x_BSHW: Tensor, side: int) -> Tensor:
    """Minimum over a `side` x `side` box with OpenCV's anchor (`side // 2`); outside the image lies +inf."""
    return _box(x_BSHW, side, torch.minimum)


def dilate(x_BSHW: Tensor, side: int) -> Tensor:
    """Maximum over a `side` x `side` box with OpenCV's anchor (`side // 2`); outside the image lies -inf."""
    return _box(x_BSHW, side, torch.maximum)


def _box(x_BSHW: Tensor, side: int, better: Callable[..., Tensor]) -> Tensor:
    """Rows, then columns, one neighbour at a time, without padded copies (max pooling takes several times as long)."""
    before = side // 2
    for axis in (2, 3):
        inner = x_BSHW.shape[axis] - 1
        for step in range(side - 1):
            source_BSHW, x_BSHW = x_BSHW, torch.empty_like(x_BSHW)
            at, edge = (1, 0) if step < before else (0, inner)  # neighbours in front first, then those behind
            pair = source_BSHW.narrow(axis, 0, inner), source_BSHW.narrow(axis, 1, inner)
            better(*pair, out=x_BSHW.narrow(axis, at, inner))
            x_BSHW.select(axis, edge).copy_(source_BSHW.select(axis, edge))
    return x_BSHW
