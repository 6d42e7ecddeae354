"""Guidance maps: where a clip moves, by causal rank pooling (paper, FRP; official lib/datasets/base.py).

Shapes: B clips, T frames, C channels (3), H x W pixels, w window, S = T - w + 1 windows.
"""

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

    The weights of rank pooling are linear in time, so that two prefix sums give every window in constant time. They are
    taken in float64: differences of long sums would cancel in float32.
    """
    batch, frames = x_BTCHW.shape[:2]
    if frames < window:
        return x_BTCHW.new_zeros(batch, frames, *x_BTCHW.shape[3:])
    pooled_BSCHW = F.relu(_rank_pool(x_BTCHW, window))
    motion_BSCHW = _min_max(pooled_BSCHW, dims=(2, 3, 4))
    grey_BSHW = torch.einsum("bschw,c->bshw", motion_BSCHW, motion_BSCHW.new_tensor(LUMA))
    salient_BSHW = grey_BSHW * (grey_BSHW > grey_BSHW.mean((2, 3), keepdim=True))
    salient_BSHW = _min_max(dilate(erode(salient_BSHW, 2), 3), dims=(2, 3))
    return F.pad((grey_BSHW + salient_BSHW) * salient_BSHW, (0, 0, 0, 0, window - 1, 0))


def _rank_pool(x_BTCHW: Tensor, window: int) -> Tensor:
    """`sum_i (2i - w - 1) x_i` over each window, i = 1..w."""
    frames = x_BTCHW.shape[1]
    place_T111 = torch.arange(frames, device=x_BTCHW.device, dtype=torch.float64)[:, None, None, None]
    x_BTCHW = x_BTCHW.double()

    def window_sums(values_BTCHW: Tensor) -> Tensor:
        sums = F.pad(values_BTCHW.cumsum(1), (0, 0, 0, 0, 0, 0, 1, 0))
        return sums[:, window:] - sums[:, :-window]

    first_S111 = place_T111[: frames - window + 1]
    weighted_BSCHW = 2 * window_sums(place_T111 * x_BTCHW)
    return (weighted_BSCHW - (2 * first_S111 + window - 1) * window_sums(x_BTCHW)).float()


def _min_max(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Shift and scale to [0, 1] over `dims`."""
    x = x - x.amin(dims, keepdim=True)
    high = x.amax(dims, keepdim=True)
    return x / torch.where(high == 0, EPSILON, high)


def erode(x_BSHW: Tensor, side: int) -> Tensor:
    """Minimum over a `side` x `side` box with OpenCV's anchor (`side // 2`); outside the image lies +inf."""
    return -dilate(-x_BSHW, side)


def dilate(x_BSHW: Tensor, side: int) -> Tensor:
    """Maximum over a `side` x `side` box with OpenCV's anchor (`side // 2`); outside the image lies -inf."""
    before, after = side // 2, side - 1 - side // 2
    padded = F.pad(x_BSHW, (before, after, before, after), value=-torch.inf)
    return F.max_pool2d(padded, side, stride=1)
