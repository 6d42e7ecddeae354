"""One channel of depth as a picture of three, which is what the network takes."""

from typing import Literal

import torch
from torch import Tensor


def jet_table() -> Tensor:
    """The JET colour map as 256 colours `[256, 3]`, uint8, blue first: the released code hands OpenCV's order on."""
    level_256 = torch.linspace(0, 1, 256)
    centres_3 = torch.tensor([1.0, 2.0, 3.0])  # blue, green, red
    return (255 * (1.5 - (4 * level_256[:, None] - centres_3).abs()).clamp(0, 1)).round().to(torch.uint8)


def coloured(depth_X1HW: Tensor, colour: Literal["jet", "gray"]) -> Tensor:
    """`[..., 3, H, W]` of uint8 depth `[..., 1, H, W]`."""
    if colour == "gray":
        return depth_X1HW.expand(*depth_X1HW.shape[:-3], 3, -1, -1)
    return jet_table()[depth_X1HW.squeeze(-3).long()].movedim(-1, -3)
