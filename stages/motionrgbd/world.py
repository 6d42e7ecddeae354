"""The generated world: RGB-D clips of a gloved hand, whose label is partly hidden from each modality (card, "Data").

Label = trajectory (4) x glove stripes (2, in RGB alone) x depth motion (2, in depth alone). The trajectories are two
pairs, each the other played backwards, so that a set of frames does not tell them apart. Everything else is drawn
independently of the label: hand shape, size, colour and place, phase, start and duration, background, clutter, noise.

Shapes: N clips, T frames, H x W pixels; places are in shares of the side.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

TRAJECTORIES = ("sweep right", "sweep left", "circle", "reversed circle")
GLOVES = ("vertical stripes", "horizontal stripes")
DEPTH_MOTIONS = ("push", "pull")
CLASSES = len(TRAJECTORIES) * len(GLOVES) * len(DEPTH_MOTIONS)
CLUTTER = 3
STRIPE_PERIOD = 4  # pixels
NOISE_RGB, NOISE_DEPTH = 8.0, 4.0  # standard deviations, of 255
SHORTEST = 0.45  # of the clip, that a gesture takes
AMPLITUDE = 0.30  # of a sweep and radius of a circle, before its own factor


class Uniform(Protocol):
    """`uniform(low, high, *shape)` draws `[N, *shape]`."""

    def __call__(self, low: float, high: float, *shape: int) -> Tensor:
        """Draw."""


@dataclass(frozen=True)
class Factors:
    """The three parts of a label, each `[N]`."""

    trajectory: Tensor
    glove: Tensor
    depth: Tensor


def factors_of(label_N: Tensor) -> Factors:
    """Split labels, 0..15, into their parts."""
    return Factors(label_N // 4, label_N // 2 % 2, label_N % 2)


def generate(per_class: int, frames: int, side: int, generator: Generator) -> dict[str, Tensor]:
    """`per_class` clips of each class in random order.

    Returns:
        `rgb` `[N, T, 3, H, W]` and `depth` `[N, T, 1, H, W]`, uint8, and `label` `[N]`, int64.
    """
    label_N = torch.arange(CLASSES).repeat(per_class)[
        torch.randperm(per_class * CLASSES, generator=generator)
    ]
    count, factors = len(label_N), factors_of(label_N)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    progress_NT = _progress(count, frames, generator)
    place_NT2 = _places(factors.trajectory, progress_NT, uniform)
    axis_H = torch.arange(side) / side
    y_H1, x_1W = axis_H[:, None], axis_H[None]
    hand_NTHW = _shape_mask(
        x_1W, y_H1, place_NT2, uniform(0.14, 0.20)[:, None], torch.rand(count, generator=generator) < 0.5
    )

    glove_NT3HW = _glove(factors.glove, place_NT2, side, uniform)

    rgb_N3HW, depth_NHW = _background(x_1W, y_H1, uniform)
    for _ in range(CLUTTER):
        spot_N12 = uniform(0.05, 0.95, 1, 2)
        object_NHW = _shape_mask(
            x_1W, y_H1, spot_N12, uniform(0.06, 0.12)[:, None], torch.rand(count, generator=generator) < 0.5
        )[:, 0]
        rgb_N3HW = torch.where(object_NHW[:, None], uniform(30, 150, 3)[:, :, None, None], rgb_N3HW)
        depth_NHW = torch.where(object_NHW, uniform(60, 200)[:, None, None], depth_NHW)

    rgb_NT3HW = torch.where(hand_NTHW[:, :, None], glove_NT3HW, rgb_N3HW[:, None])
    towards_NT = torch.where(factors.depth[:, None] == 0, progress_NT, 1 - progress_NT)
    near_NT = uniform(100, 140)[:, None] + uniform(60, 90)[:, None] * towards_NT
    depth_NTHW = torch.where(hand_NTHW, near_NT[:, :, None, None], depth_NHW[:, None])

    def noisy(x: Tensor, deviation: float) -> Tensor:
        noise = deviation * torch.randn(x.shape, generator=generator)
        return (x + noise).round().clamp(0, 255).to(torch.uint8)

    return {
        "rgb": noisy(rgb_NT3HW, NOISE_RGB),
        "depth": noisy(depth_NTHW, NOISE_DEPTH)[:, :, None],
        "label": label_N,
    }


def _progress(count: int, frames: int, generator: Generator) -> Tensor:
    """How far each gesture is, 0..1 `[N, T]`: it rests, moves at an even pace, rests."""
    length_N = SHORTEST + (1 - SHORTEST) * torch.rand(count, generator=generator)
    start_N = (1 - length_N) * torch.rand(count, generator=generator)
    time_T = torch.linspace(0, 1, frames)
    return ((time_T - start_N[:, None]) / length_N[:, None]).clamp(0, 1)


def _places(trajectory_N: Tensor, progress_NT: Tensor, uniform: Uniform) -> Tensor:
    """Centre of the hand `[N, T, 2]`, x and y; circles have a random phase, and each clip its own place and size."""
    size_N1 = AMPLITUDE * uniform(0.8, 1.1)[:, None]
    backwards_N1 = (trajectory_N % 2 == 1)[:, None]
    way_NT = torch.where(backwards_N1, 1 - progress_NT, progress_NT)
    angle_NT = uniform(0, 2 * math.pi)[:, None] + 2 * math.pi * way_NT
    sweep_NT2 = torch.stack([size_N1 * (2 * way_NT - 1), torch.zeros_like(way_NT)], -1)
    circle_NT2 = size_N1[:, :, None] * torch.stack([torch.cos(angle_NT), torch.sin(angle_NT)], -1)
    move_NT2 = torch.where((trajectory_N < 2)[:, None, None], sweep_NT2, circle_NT2)
    return uniform(0.42, 0.58, 1, 2) + move_NT2


def _shape_mask(x_1W: Tensor, y_H1: Tensor, place_NT2: Tensor, radius_N1: Tensor, disc_N: Tensor) -> Tensor:
    """Pixels of a disc or a square of about the same area, `[N, T, H, W]`."""
    x_NT11, y_NT11 = (part[..., None] for part in place_NT2[..., None].unbind(2))
    dx, dy = (x_1W - x_NT11).abs(), (y_H1 - y_NT11).abs()
    radius = radius_N1[..., None, None]
    half = radius * math.sqrt(math.pi) / 2
    return torch.where(disc_N[:, None, None, None], dx**2 + dy**2 < radius**2, torch.maximum(dx, dy) < half)


def _glove(glove_N: Tensor, place_NT2: Tensor, side: int, uniform: Uniform) -> Tensor:
    """Stripes that move with the hand, in a colour of its own for each clip, `[N, T, 3, H, W]`."""
    corner_NT2 = (place_NT2 * side).round()
    pixel_H = torch.arange(side)
    column_NT1W = (pixel_H - corner_NT2[..., :1])[:, :, None]
    row_NTH1 = (pixel_H - corner_NT2[..., 1:])[..., None]
    across_NTHW = torch.where(glove_N[:, None, None, None] == 0, column_NT1W, row_NTH1)
    bright_NTHW = torch.where(across_NTHW % STRIPE_PERIOD < STRIPE_PERIOD / 2, 1.0, 0.25)
    return uniform(170, 255, 3)[:, None, :, None, None] * bright_NTHW[:, :, None]


def _background(x_1W: Tensor, y_H1: Tensor, uniform: Uniform) -> tuple[Tensor, Tensor]:
    """A tinted wave in RGB `[N, 3, H, W]` and a tilted plane in depth `[N, H, W]`."""
    turn_N, cycles_N = uniform(0, math.pi)[:, None, None], uniform(1, 4)[:, None, None]
    along = x_1W * torch.cos(turn_N) + y_H1 * torch.sin(turn_N)
    wave_NHW = torch.sin(2 * math.pi * (cycles_N * along + uniform(0, 1)[:, None, None]))
    tint_N3 = uniform(30, 90, 3)
    strength_N = uniform(5, 20)[:, None, None]
    rgb_N3HW = tint_N3[:, :, None, None] + (strength_N * wave_NHW)[:, None]
    tilt_NHW = uniform(-30, 30)[:, None, None] * (x_1W - 0.5) + uniform(-30, 30)[:, None, None] * (y_H1 - 0.5)
    return rgb_N3HW, uniform(30, 80)[:, None, None] + tilt_NHW
