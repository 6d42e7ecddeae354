"""Generated shapes: the card's quick-scale classification data, 8 classes of 12 x 12 colour images."""

import math

import torch
from torch import Tensor

CLASSES = ("disc", "square", "diamond", "ring", "plus", "triangle", "hollow square", "L")
SIZE = 12


def make_shapes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw `count` images, classes in turn: float32 `[count, 3, 12, 12]` and int64 labels `[count]`."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    label_N = torch.arange(count) % len(CLASSES)
    centre_N2 = uniform(-0.35, 0.35, count, 2)
    radius_N11 = uniform(0.45, 0.7, count, 1, 1)
    angle_N11 = uniform(-0.35, 0.35, count, 1, 1)
    grid_S = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    y_SS, x_SS = torch.meshgrid(grid_S, grid_S, indexing="ij")
    x_NSS, y_NSS = x_SS - centre_N2[:, :1, None], y_SS - centre_N2[:, 1:, None]
    u_NSS = (x_NSS * angle_N11.cos() + y_NSS * angle_N11.sin()) / radius_N11
    v_NSS = (y_NSS * angle_N11.cos() - x_NSS * angle_N11.sin()) / radius_N11
    distance_NSS = torch.empty_like(u_NSS)
    for index in range(len(CLASSES)):
        rows = label_N == index
        distance_NSS[rows] = _signed_distance(CLASSES[index], u_NSS[rows], v_NSS[rows])
    coverage_N1SS = torch.sigmoid(-distance_NSS * radius_N11 * SIZE)[:, None]  # soft edge of about a pixel
    background_N311 = uniform(-0.6, 0.2, count, 3, 1, 1)
    brighter_N311 = uniform(0.7, 1.3, count, 3, 1, 1)
    noise_N3SS = 0.2 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return background_N311 + brighter_N311 * coverage_N1SS + noise_N3SS, label_N


def _signed_distance(name: str, u: Tensor, v: Tensor) -> Tensor:
    """Distance to the outline of a shape of half-size 1 at the origin, negative inside."""
    square = torch.maximum(u.abs(), v.abs()) - 1
    disc = torch.hypot(u, v) - 1
    match name:
        case "disc":
            return disc
        case "square":
            return square + 0.1
        case "diamond":
            return (u.abs() + v.abs() - 1) / math.sqrt(2)
        case "ring":
            return (disc + 0.25).abs() - 0.25
        case "plus":
            bar = 0.33
            return torch.minimum(
                torch.maximum(u.abs() - 1, v.abs() - bar), torch.maximum(u.abs() - bar, v.abs() - 1)
            )
        case "triangle":
            return torch.maximum(v - 0.8, (2 * u.abs() - v - 1) / math.sqrt(5))
        case "hollow square":
            return (square + 0.3).abs() - 0.25
        case _:  # L: the left and the lower bar
            return torch.maximum(square, torch.minimum(u + 0.35, 0.35 - v))
