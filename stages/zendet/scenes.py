"""Generated scenes: the card's quick-scale detection data, 2 to 6 objects of 6 classes on a wavy, noisy background."""

import numpy as np
import torch
from torch import Tensor

CLASSES = ("circle", "square", "triangle", "ring", "plus", "stripes")
SMALLEST = 9  # pixels; the largest side is half the image, log-uniform between them
MOST = 6
ATTEMPTS = 30  # to place an object without overlap


def make_scenes(count: int, size: int, seed: int) -> dict[str, Tensor]:
    """Draw `count` scenes of `size` x `size` pixels.

    Returns:
        images: uint8 `[count, 3, size, size]`. boxes: float32 `[objects, 4]`, x1, y1, x2, y2 in pixels. labels:
        int64 `[objects]`, index into `CLASSES`. image: int64 `[objects]`, the scene of each object, ascending.
    """
    rng = np.random.default_rng([seed, size])
    images = _backgrounds(rng, count, size)
    boxes, labels, owners = [], [], []
    for index in range(count):
        for box in _place(rng, size):
            label = int(rng.integers(len(CLASSES)))
            _paint(images[index], box, label, rng)
            boxes.append(box)
            labels.append(label)
            owners.append(index)
    images += rng.normal(0, 8, images.shape).astype(np.float32)
    return {
        "images": torch.from_numpy(images.clip(0, 255).round().astype(np.uint8)),
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.long),
        "image": torch.tensor(owners, dtype=torch.long),
    }


def _backgrounds(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """A base colour and a sinusoid, float32 `[count, 3, size, size]` in about 0 .. 255."""
    base = rng.uniform(60, 180, (count, 3, 1, 1))
    amplitude = rng.uniform(5, 35, (count, 3, 1, 1))
    angle, phase = rng.uniform(0, 2 * np.pi, (2, count, 1, 1, 1))
    wavelength = rng.uniform(0.15, 0.8, (count, 1, 1, 1)) * size
    y, x = np.mgrid[:size, :size].astype(np.float32)
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / wavelength + phase)
    background: np.ndarray = (base + amplitude * wave).astype(np.float32)
    return background


def _place(rng: np.random.Generator, size: int) -> list[tuple[int, int, int, int]]:
    """Boxes that do not overlap, as whole pixels."""
    boxes: list[tuple[int, int, int, int]] = []
    for _ in range(int(rng.integers(2, MOST + 1))):
        side = np.exp(rng.uniform(np.log(SMALLEST), np.log(size / 2)))
        stretch = np.exp(rng.uniform(-0.35, 0.35) / 2)
        width, height = (
            int(np.clip(round(s), SMALLEST, size // 2)) for s in (side * stretch, side / stretch)
        )
        for _ in range(ATTEMPTS):
            x, y = int(rng.integers(0, size - width + 1)), int(rng.integers(0, size - height + 1))
            if all(x >= b[2] or y >= b[3] or x + width <= b[0] or y + height <= b[1] for b in boxes):
                boxes.append((x, y, x + width, y + height))
                break
    return boxes


def _paint(
    image_3SS: np.ndarray, box: tuple[int, int, int, int], label: int, rng: np.random.Generator
) -> None:
    """Paint one object in a colour that differs from what is there."""
    x1, y1, x2, y2 = box
    v, u = np.mgrid[-1 : 1 : (y2 - y1) * 1j, -1 : 1 : (x2 - x1) * 1j]
    radius = np.hypot(u, v)
    match CLASSES[label]:
        case "circle":
            mask = radius <= 1
        case "square":
            mask = np.ones_like(u, dtype=bool)
        case "triangle":
            mask = 2 * np.abs(u) <= 1 + v
        case "ring":
            mask = (radius <= 1) & (radius >= 0.55)
        case "plus":
            mask = (np.abs(u) <= 0.35) | (np.abs(v) <= 0.35)
        case _:  # stripes: the outline of a square, told from it by its inside
            mask = np.floor((u + 1) * 2.5).astype(int) % 2 == 0
    patch = image_3SS[:, y1:y2, x1:x2]
    colour = rng.uniform(0, 255, 3)
    while np.abs(colour - patch.mean((1, 2))).max() < 60:
        colour = rng.uniform(0, 255, 3)
    patch[:, mask] = colour[:, None]
