"""Generated "dead leaves" pictures: textured discs that occlude one another.

They have edges and scale invariance (radii follow a power law), and since the same few textures come back, also
redundancy over long distances. Slightly blurred, with a little noise.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TEXTURES = (3, 5)  # per picture
RADII, EXPONENT = (3.0, 48.0), 3.0
COVERED = 4.0  # discs are thrown until their areas sum to this many pictures
NOISE = 2.0


def dead_leaves(count: int, height: int, width: int, generator: np.random.Generator) -> Tensor:
    """uint8 pictures `[count, 3, height, width]`."""
    return torch.stack([_picture(height, width, generator) for _ in range(count)])


def _picture(height: int, width: int, generator: np.random.Generator) -> Tensor:
    row_HW, column_HW = np.mgrid[:height, :width].astype(np.float32)
    textures = [
        _texture(row_HW, column_HW, generator)
        for _ in range(generator.integers(TEXTURES[0], TEXTURES[1] + 1))
    ]
    picture = textures[0].copy()
    covered = 0.0
    while covered < COVERED * height * width:
        # density of radii ~ r^-3 between the two bounds, by inversion
        low, high = (r ** (1 - EXPONENT) for r in RADII)
        radius = (low + generator.random() * (high - low)) ** (1 / (1 - EXPONENT))
        y, x = generator.uniform(-radius, height + radius), generator.uniform(-radius, width + radius)
        texture = textures[generator.integers(len(textures))]
        top, bottom = max(0, int(y - radius)), min(height, int(y + radius) + 2)
        left, right = max(0, int(x - radius)), min(width, int(x + radius) + 2)
        part = slice(top, bottom), slice(left, right)
        inside = (row_HW[part] - y) ** 2 + (column_HW[part] - x) ** 2 <= radius**2
        picture[:, part[0], part[1]] = np.where(
            inside, texture[:, part[0], part[1]], picture[:, part[0], part[1]]
        )
        covered += np.pi * radius**2
    kernel = torch.tensor([0.25, 0.5, 0.25])
    blurred = torch.from_numpy(picture)[:, None]
    blurred = F.conv2d(
        F.pad(blurred, (1, 1, 1, 1), mode="replicate"), torch.outer(kernel, kernel)[None, None]
    )[:, 0]
    noisy = blurred + torch.from_numpy(generator.normal(0, NOISE, blurred.shape).astype(np.float32))
    return noisy.round().clamp(0, 255).to(torch.uint8)


def _texture(row_HW: np.ndarray, column_HW: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A colour, modulated by two gratings."""
    colour = generator.uniform(30, 225, (3, 1, 1)).astype(np.float32)
    texture = np.repeat(np.repeat(colour, row_HW.shape[0], 1), row_HW.shape[1], 2)
    for _ in range(2):
        angle, period = generator.uniform(0, np.pi), generator.uniform(5, 24)
        amplitude, phase = generator.uniform(0, 22), generator.uniform(0, 2 * np.pi)
        wave = np.cos(2 * np.pi / period * (np.cos(angle) * row_HW + np.sin(angle) * column_HW) + phase)
        texture += (amplitude * wave).astype(np.float32)
    return texture
