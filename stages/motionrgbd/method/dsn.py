"""DSN, the decoupled spatial network: frames to tokens, with time folded into the batch (paper 3.1; lib/model/DSN.py).

Every operation but the pool of the inception blocks sees one frame, so N = B * T images go through 2-D convolutions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stages.motionrgbd.method.blocks import SamePool, SpatialConv, SpatialInception
from stages.motionrgbd.method.frp import FRP

INCEPTION = {  # name -> widths of its branches
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


class DSN(nn.Module):
    """Layers on frames, FRP after some of them, spatial mean, LN and a linear map to tokens.

    Use `inception_dsn` for the paper's network and `plain_dsn` for a small one.
    """

    def __init__(
        self, layers: dict[str, nn.Module], guided: Sequence[str], channels: int, dim: int, frp: bool
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.guided = frozenset(guided) if frp else frozenset()
        self.frp = FRP() if frp else None
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, dim)

    def forward(self, x_BTCHW: Tensor, guidance_BTHW: Tensor) -> Tensor:
        """Tokens `[B, T, dim]` of normalised frames and their guidance maps."""
        batch, frames = x_BTCHW.shape[:2]
        x = x_BTCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        guidance_NHW = guidance_BTHW.flatten(0, 1)
        for name, layer in self.layers.items():
            x = layer(x, frames) if isinstance(layer, SpatialInception) else layer(x)
            if self.frp is not None and name in self.guided:
                x = self.frp(x, guidance_NHW) + x
        return self.linear(self.norm(x.mean((2, 3)))).unflatten(0, (batch, frames))


def inception_dsn(dim: int = 512, frp: bool = True, strict_spatial: bool = False) -> DSN:
    """The paper's network: 4.08 M parameters, sides down to 1/32."""
    layers: dict[str, nn.Module] = {
        "Conv3d_1a_7x7": SpatialConv(3, 64, 7, 2),
        "MaxPool3d_2a_3x3": SamePool(3, 2),
        "Conv3d_2b_1x1": SpatialConv(64, 64, 1),
        "Conv3d_2c_3x3": SpatialConv(64, 192, 3),
        "MaxPool3d_3a_3x3": SamePool(3, 2),
    }
    channels = 192
    for name, widths in INCEPTION.items():
        if name == "Mixed_4b":
            layers["MaxPool3d_4a_3x3"] = SamePool(3, 2)
        if name == "Mixed_5b":
            layers["MaxPool3d_5a_2x2"] = SamePool(2, 2)
        layers[name] = SpatialInception(channels, widths, strict_spatial)
        channels = widths[0] + widths[2] + widths[4] + widths[5]
    return DSN(layers, ("Mixed_3b", "Mixed_4b", "Mixed_5b"), channels, dim, frp)


def plain_dsn(widths: Sequence[int], strides: Sequence[int], dim: int, frp: bool = True) -> DSN:
    """Plain 3 x 3 convolutions, FRP after each but the first: for clips of 32 pixels."""
    layers: dict[str, nn.Module] = {}
    for index, (channels_in, channels_out, stride) in enumerate(
        zip((3, *widths[:-1]), widths, strides, strict=True)
    ):
        layers[f"conv{index}"] = SpatialConv(channels_in, channels_out, 3, stride)
    return DSN(layers, list(layers)[1:], widths[-1], dim, frp)
