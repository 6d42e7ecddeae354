"""Guidance maps: where a clip moves, by causal rank pooling (paper, FRP; official lib/datasets/base.py).

Shapes: B clips, T frames, C channels (3), H x W pixels, w window, S = T - w + 1 windows.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)
EPSILON = 1e-5  # what the released code divides a map of zeros by


def rank_pool_guidance(x_BTCHW: Tensor, window: int) -> Tensor:
    """Guidance `[B, T, H, W]` in [0, 2] of normalised frames; the first `window - 1` maps are zero.

    Args:
        x_BTCHW: frames, `(pixel - 127.5) / 128`.
        window: frames that a map looks back on, its own included.
    """
    batch, frames, _, height, width = x_BTCHW.shape
    if frames < window:
        return x_BTCHW.new_zeros(batch, frames, height, width)
    pooled_BSCHW = rank_pool(x_BTCHW, window).relu_()
    low_BS11, high_BS11 = (
        extreme[:, :, None, None] for extreme in (pooled_BSCHW.amin((2, 3, 4)), pooled_BSCHW.amax((2, 3, 4)))
    )
    # grey of the scaled colours is the scaled grey: the three channels are read once
    luma_C = pooled_BSCHW.new_tensor(LUMA)
    grey_BSHW = torch.einsum("bscp,c->bsp", pooled_BSCHW.flatten(3), luma_C).unflatten(-1, (height, width))
    grey_BSHW = grey_BSHW.sub_(low_BS11 * luma_C.sum()).div_(_divisor(high_BS11 - low_BS11))
    salient_BSHW = grey_BSHW * (grey_BSHW > grey_BSHW.mean((2, 3), keepdim=True))
    salient_BSHW = dilate(erode(salient_BSHW, 2), 3)
    salient_BSHW = salient_BSHW - salient_BSHW.amin((2, 3), keepdim=True)
    salient_BSHW = salient_BSHW.div_(_divisor(salient_BSHW.amax((2, 3), keepdim=True)))
    return F.pad(grey_BSHW.add_(salient_BSHW).mul_(salient_BSHW), (0, 0, 0, 0, window - 1, 0))


def rank_pool(x_BTCHW: Tensor, window: int) -> Tensor:
    """`sum_i (2i - w - 1) x_i` over each window, i = 1..w: `[B, S, C, H, W]`.

    All windows are one product with a banded matrix. Prefix sums need fewer operations, but were five times slower than a
    loop over frames at 224 pixels: what costs is memory, and they need float64, since their differences cancel. Here the
    sums of `uint8` frames are exact, so that what stands still gives exactly zero.
    """
    frames = x_BTCHW.shape[1]
    place_T = torch.arange(frames, device=x_BTCHW.device)
    age_ST = place_T - place_T[: frames - window + 1, None]  # i - 1
    weight_ST = torch.where((age_ST >= 0) & (age_ST < window), 2 * age_ST + 1 - window, 0)
    pooled_BSX = weight_ST.to(x_BTCHW.dtype) @ x_BTCHW.flatten(2)
    return pooled_BSX.unflatten(-1, x_BTCHW.shape[2:])


def _divisor(height: Tensor) -> Tensor:
    return torch.where(height == 0, EPSILON, height)


def erode(x_BSHW: Tensor, side: int) -> Tensor:
    """Minimum over a `side` x `side` box with OpenCV's anchor (`side // 2`); outside the image lies +inf."""
    return _box(x_BSHW, side, torch.minimum, torch.inf)


def dilate(x_BSHW: Tensor, side: int) -> Tensor:
    """Maximum over a `side` x `side` box with OpenCV's anchor (`side // 2`); outside the image lies -inf."""
    return _box(x_BSHW, side, torch.maximum, -torch.inf)


def _box(x_BSHW: Tensor, side: int, better: Callable[[Tensor, Tensor], Tensor], outside: float) -> Tensor:
    """Rows, then columns: a pass over memory for each neighbour (max pooling takes several times as long on a CPU)."""
    before, after = side // 2, side - 1 - side // 2
    for axis, pads in ((2, (0, 0, before, after)), (3, (before, after, 0, 0))):
        size = x_BSHW.shape[axis]
        padded = F.pad(x_BSHW, pads, value=outside)
        x_BSHW = padded.narrow(axis, 0, size)
        for offset in range(1, side):
            x_BSHW = better(x_BSHW, padded.narrow(axis, offset, size))
    return x_BSHW
