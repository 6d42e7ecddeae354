"""Sliding windows of an image, and the class token of each: the feature bank that concepts are clustered from.

Grid cells are patches. Shapes: W windows, h x w grid. Boxes are `[W, 4]`: x0, y0, x1, y1, inclusive cells.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

FOREGROUND_SHARE, BACKGROUND_SHARE = 0.5, 0.8


def sliding_windows(h: int, w: int, scales: Sequence[float]) -> Tensor:
    """Boxes on an h x w grid, int64, in the released code's order (card, "Class-token feature bank").

    Squares of side b = int(scale * min(h, w)) at stride b / 2; those that the stride would leave beyond the
    far edges are moved onto it. A window has every cell at most b / 2 from its centre.
    """
    return torch.from_numpy(_sliding_windows(h, w, tuple(scales)).copy())


@cache
def _sliding_windows(h: int, w: int, scales: tuple[float, ...]) -> np.ndarray:
    boxes = []
    for scale in scales:
        side = int(min(h * scale, w * scale))
        if side < 1:
            continue
        half = side / 2
        y, x = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
        inside = (y - half >= 0) & (x - half >= 0) & (y + half < h) & (x + half < w)
        on_y, on_x = y % half == 0, x % half == 0
        far_y, far_x = y + half == h - 1, x + half == w - 1
        end_y, end_x = far_y | (y == half), far_x | (x == half)
        kept = inside & ((on_y & on_x) | (on_y & end_x) | (on_x & end_y) | (far_y & far_x))
        cy, cx = y[kept], x[kept]
        first_y, last_y = np.ceil(cy - half), np.floor(cy + half)
        first_x, last_x = np.ceil(cx - half), np.floor(cx + half)
        boxes.append(np.stack([first_x, first_y, last_x, last_y], 1).astype(np.int64))
    return np.concatenate(boxes) if boxes else np.zeros((0, 4), np.int64)


def pixel_boxes(boxes_W4: Tensor, patch: int) -> Tensor:
    """Half-open pixel slices of inclusive cells; the released code loses the last row and column, so do we."""
    return torch.cat([boxes_W4[:, :2] * patch, boxes_W4[:, 2:] * patch + patch - 1], 1)


def foreground_shares(boxes_W4: Tensor, foreground_Bhw: Tensor, patch: int) -> Tensor:
    """Foreground's share of the pixels that each window crops, `[B, W]`, for the cell masks of many images at once.

    A crop loses its last pixel row and column. So its pixels are patch^2 of all its cells, less patch of the last row
    and of the last column, plus one of the last cell: four sums of cells, each four look-ups in an integral image.
    """
    integral_Bhw = F.pad(foreground_Bhw.double().cumsum(1).cumsum(2), (1, 0, 1, 0))
    flat_BP, line = integral_Bhw.flatten(1), integral_Bhw.shape[2]
    x0, y0, x1, y1 = boxes_W4.to(flat_BP.device).T
    x2, y2 = x1 + 1, y1 + 1
    tops, lefts = torch.stack([y0, y1, y0, y1]), torch.stack([x0, x0, x1, x1])
    corners_44W = torch.stack(
        [y2 * line + x2 + 0 * tops, tops * line + x2, y2 * line + lefts, tops * line + lefts]
    )
    low_right, up_right, low_left, up_left = flat_BP[:, corners_44W].unbind(1)
    cells, row, column, cell = (low_right - up_right - low_left + up_left).unbind(1)
    pixels_BW = patch**2 * cells - patch * (row + column) + cell
    area_W = (patch * (x2 - x0) - 1) * (patch * (y2 - y0) - 1)
    return pixels_BW / area_W.clamp(min=1)


def select_windows(
    boxes_W4: Tensor,
    foreground_Bhw: Tensor,
    patch: int,
    th_fg: float = FOREGROUND_SHARE,
    th_bg: float = BACKGROUND_SHARE,
) -> tuple[Tensor, Tensor]:
    """Which windows of each image are mostly foreground, and which mostly background; both `[B, W]`, bool.

    `foreground_Bhw` are masks of cells.
    """
    share_BW = foreground_shares(boxes_W4, foreground_Bhw, patch)
    return share_BW > th_fg, 1 - share_BW > th_bg


def crop_windows(image_CHW: Tensor, boxes_W4: Tensor, patch: int, out_size: tuple[int, int]) -> Tensor:
    """The windows resized to `out_size` (bilinear, pixel centres), `[W, C, *out_size]`, in one gather."""
    _, height, width = image_CHW.shape
    x0, y0, x1, y1 = pixel_boxes(boxes_W4.to(image_CHW.device), patch).T
    rows_low, rows_high, row_weight = _bilinear_places(y0, y1, out_size[0])
    cols_low, cols_high, col_weight = _bilinear_places(x0, x1, out_size[1])
    flat_CP = image_CHW.reshape(len(image_CHW), height * width)

    def at(rows_WI: Tensor, cols_WJ: Tensor) -> Tensor:
        return flat_CP[:, rows_WI[:, :, None] * width + cols_WJ[:, None, :]]

    b_WJ, a_WI = col_weight[:, None, :], row_weight[:, :, None]
    top = at(rows_low, cols_low) * (1 - b_WJ) + at(rows_low, cols_high) * b_WJ
    bottom = at(rows_high, cols_low) * (1 - b_WJ) + at(rows_high, cols_high) * b_WJ
    return (top * (1 - a_WI) + bottom * a_WI).transpose(0, 1)


def _bilinear_places(start_W: Tensor, stop_W: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper source line of each output line of each window, and the upper one's weight."""
    length_W1 = (stop_W - start_W)[:, None]
    place_WI = (torch.arange(size, device=start_W.device) + 0.5) * length_W1 / size - 0.5
    place_WI = place_WI.clamp(min=0)
    low_WI = place_WI.floor().long().clamp(max=length_W1 - 1)
    high_WI = (low_WI + 1).clamp(max=length_W1 - 1)
    return start_W[:, None] + low_WI, start_W[:, None] + high_WI, (place_WI - low_WI).clamp(max=1)


@torch.inference_mode()
def extract_class_tokens(model: nn.Module, windows_WCHW: Tensor, batch: int = 256) -> Tensor:
    """Class tokens of windows after the final norm, not normalised, `[W, D]`."""
    parts = [model(part) for part in windows_WCHW.split(batch)]
    return torch.cat(parts) if parts else torch.zeros(0, 0)
