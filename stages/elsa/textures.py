"""The quick scale's images: a texture inside an ellipse, over clutter (card, "Data").

The class lies only in fine local structure at an arbitrary offset, without a global shape or a colour, so that a mixer has
to form filters that know relative positions. Two sets of ten textures share the generator: one to pre-train on and
other ones to fine-tune on.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

SIZE = 28
CLASSES = 10
Family = Literal["textures", "new-textures"]
# first angle of the four orientations, the two periods, and the periods of checker and dots, in pixels
FAMILIES: dict[Family, tuple[float, tuple[float, float], tuple[float, float]]] = {
    "textures": (0.0, (3.2, 4.6), (4.0, 4.0)),
    "new-textures": (math.pi / 8, (3.8, 5.4), (5.6, 5.6)),
}


def generate(family: Family, count: int, generator: Generator) -> dict[str, Tensor]:
    """`x` `[N, 3, 28, 28]`, classes `y` `[N]`, and `mask` `[N, 28, 28]`: class + 1 inside the ellipse, else 0."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    y_N = torch.arange(count) % CLASSES
    y_N = y_N[torch.randperm(count, generator=generator)]
    texture = _texture(family, y_N, uniform)
    axis_y, axis_x, centre_y, centre_x = (
        uniform(low, high, 1, 1) for low, high in ((5, 9), (5, 9), (8, 20), (8, 20))
    )
    row, column = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    ellipse = ((row - centre_y) / axis_y) ** 2 + ((column - centre_x) / axis_x) ** 2 <= 1
    low_pass = F.interpolate(torch.randn(count, 1, 7, 7, generator=generator), SIZE, mode="bilinear")[:, 0]
    clutter = low_pass + 0.6 * torch.randn(count, SIZE, SIZE, generator=generator)
    grey_N1HW = torch.where(ellipse, texture, clutter)[:, None]
    gain, offset = uniform(0.6, 1.0, 3, 1, 1), uniform(-0.2, 0.2, 3, 1, 1)
    noise = 0.35 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return {"x": gain * grey_N1HW + offset + noise, "y": y_N, "mask": ellipse * (y_N[:, None, None] + 1)}


def _texture(family: Family, y_N: Tensor, uniform: object) -> Tensor:
    """`[N, 28, 28]` of unit contrast: bars (0 to 7), a checker (8), dots (9), at a random phase and sign."""
    first, periods, others = FAMILIES[family]
    draw = uniform
    assert callable(draw)
    row, column = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    angle = first + (y_N % 4) * math.pi / 4
    period = torch.tensor([periods[0]] * 4 + [periods[1]] * 4 + list(others))[y_N]
    angle = torch.where(y_N < 8, angle, first)[:, None, None] + draw(-0.125, 0.125, 1, 1)
    wave = 2 * math.pi / period[:, None, None]
    along = wave * (column * angle.cos() + row * angle.sin()) + draw(0, 2 * math.pi, 1, 1)
    across = wave * (row * angle.cos() - column * angle.sin()) + draw(0, 2 * math.pi, 1, 1)
    sign = draw(-1, 1, 1, 1).sign()
    bars = along.sin()
    checker = along.sin().sign() * across.sin().sign()
    dots = 2 * ((along.cos() + across.cos()) > 0.8) - 1.0
    kind = y_N[:, None, None]
    return sign * torch.where(kind < 8, bars, torch.where(kind == 8, checker, dots))
