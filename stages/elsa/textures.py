"""Generated textures in clutter: the card's quick-scale data, 10 classes of 28 x 28 colour images.

The class lives only in fine local structure inside a random ellipse: no global shape or colour tells it, so that a
token mixer has to form position-relative local filters, wherever the borders of its windows fall.
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

SIZE = 28
CLASSES = 10
PERIODS = (3.2, 4.6)  # pixels, of bars; checker and dots have the means of these
JITTER = 0.125  # radians, of a bar's angle


def make_textures(count: int, turn: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw `count` images, classes in turn: float32 `[count, 3, 28, 28]` and int64 labels `[count]`.

    Labels 0 to 7 are bars at four orientations of two periods, 8 is a checker, 9 a lattice of dots. `turn` (radians)
    turns all of them: other textures of the same kind, for a second data set.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    label_N = torch.arange(count) % CLASSES
    pixel_S = torch.arange(SIZE, dtype=torch.float32)
    y_SS, x_SS = torch.meshgrid(pixel_S, pixel_S, indexing="ij")

    bars = label_N < 8
    period_N = torch.where(bars, torch.tensor(PERIODS)[label_N // 4 % 2], sum(PERIODS) / 2)
    angle_N = torch.where(bars, label_N % 4 * math.pi / 4, 0.0) + turn + uniform(-JITTER, JITTER, count)
    cosine, sine = angle_N.cos()[:, None, None], angle_N.sin()[:, None, None]
    wave = 2 * math.pi / period_N[:, None, None]
    phase_2N11 = uniform(0, 2 * math.pi, 2, count, 1, 1)
    along = torch.sin(wave * (x_SS * cosine + y_SS * sine) + phase_2N11[0])
    across = torch.sin(wave * (y_SS * cosine - x_SS * sine) + phase_2N11[1])
    texture_NSS = along
    texture_NSS = torch.where((label_N == 8)[:, None, None], (4 * along * across).tanh(), texture_NSS)
    dots = 2 * torch.sigmoid(6 * (along + across - 1)) - 1
    texture_NSS = torch.where((label_N == 9)[:, None, None], dots, texture_NSS)
    sign_N11 = torch.where(uniform(0, 1, count, 1, 1) < 0.5, -1.0, 1.0)

    centre_2N11 = uniform(8, 20, 2, count, 1, 1)
    half_axes_2N11 = uniform(5, 9, 2, count, 1, 1)
    lean_N11 = uniform(0, math.pi, count, 1, 1)
    dx, dy = x_SS - centre_2N11[0], y_SS - centre_2N11[1]
    u = (dx * lean_N11.cos() + dy * lean_N11.sin()) / half_axes_2N11[0]
    v = (dy * lean_N11.cos() - dx * lean_N11.sin()) / half_axes_2N11[1]
    inside_NSS = (u.square() + v.square()) < 1

    coarse = torch.randn(count, 1, 7, 7, generator=generator)
    clutter_NSS = F.interpolate(coarse, (SIZE, SIZE), mode="bilinear", align_corners=False)[:, 0]
    clutter_NSS = clutter_NSS + 0.6 * torch.randn(count, SIZE, SIZE, generator=generator)
    image_N1SS = torch.where(inside_NSS, sign_N11 * texture_NSS, clutter_NSS)[:, None]
    gain_N311, offset_N311 = uniform(0.6, 1, count, 3, 1, 1), uniform(-0.3, 0.3, count, 3, 1, 1)
    noise_N3SS = 0.35 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return gain_N311 * image_N1SS + offset_N311 + noise_N3SS, label_N
