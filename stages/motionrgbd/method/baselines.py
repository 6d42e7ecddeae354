"""What the method is compared with: tokens averaged or through an LSTM, and 3-D convolutions.

Shapes: B clips, T frames, D token width, K classes.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.motionrgbd.method.dsn import DSN


class TokenPool(nn.Module):
    """The spatial network, then the mean of its tokens or the last state of an LSTM, then a linear head."""

    def __init__(self, dsn: DSN, dim: int, classes: int, pool: Literal["mean", "lstm"]) -> None:
        super().__init__()
        self.dsn = dsn
        self.lstm = nn.LSTM(dim, dim, batch_first=True) if pool == "lstm" else None
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, classes))

    def forward(self, x_BTCHW: Tensor, guidance_BTHW: Tensor) -> Tensor:
        """Scores `[B, K]`."""
        z_BTD = self.dsn(x_BTCHW, guidance_BTHW)
        if self.lstm is None:
            return self.head(z_BTD.mean(1))
        states_BTD, _ = self.lstm(z_BTD)
        return self.head(states_BTD[:, -1])


class SmallCNN3d(nn.Module):
    """3 x 3 x 3 convolutions of the small network's widths and strides, global mean, linear head."""

    def __init__(self, widths: Sequence[int], strides: Sequence[int], classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv3d(channels_in, channels_out, 3, (1, stride, stride), 1, bias=False)
            for channels_in, channels_out, stride in zip((3, *widths[:-1]), widths, strides, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm3d(width) for width in widths)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x_BTCHW: Tensor, guidance_BTHW: Tensor) -> Tensor:
        """Scores `[B, K]`; guidance is not used."""
        x_BCTHW = x_BTCHW.transpose(1, 2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x_BCTHW = F.relu(norm(conv(x_BCTHW)))
        return self.head(x_BCTHW.mean((2, 3, 4)))


class VideoResNet(nn.Module):
    """torchvision's r3d_18, from scratch."""

    def __init__(self, classes: int) -> None:
        from torchvision.models.video import r3d_18

        super().__init__()
        self.net = r3d_18(num_classes=classes)

    def forward(self, x_BTCHW: Tensor, guidance_BTHW: Tensor) -> Tensor:
        """Scores `[B, K]`; guidance is not used."""
        scores: Tensor = self.net(x_BTCHW.transpose(1, 2))
        return scores


def shuffled_maps(guidance_BTHW: Tensor) -> Tensor:
    """Each map with its pixels in an order drawn for the batch: the same values, no place."""
    order = torch.randperm(guidance_BTHW.shape[-2] * guidance_BTHW.shape[-1]).to(guidance_BTHW.device)
    return guidance_BTHW.flatten(2)[..., order].view(guidance_BTHW.shape)
