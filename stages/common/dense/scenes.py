"""Generated scenes: objects of six classes that do not overlap, for detection, instance and semantic segmentation.

Two looks. "wavy": a sinusoid with a little noise, objects in any colour (the card of ZenDet; classes and objects are hard to
tell from it). "bright": a plain dark background and brighter objects under much noise (the card of CHEX; small networks
learn it in a few hundred steps). Legend: S side of an image.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

CLASSES = ("circle", "square", "triangle", "ring", "plus", "stripes")
SMALLEST = 9  # pixels; the largest side is half the image, log-uniform between them
ATTEMPTS = 30  # to place an object without overlap
CONTRAST = 60  # "wavy": least distance of an object's colour from what is there, in one of the channels
NOISE: dict["Look", float] = {"wavy": 8.0, "bright": 76.5}  # of 255

Look = Literal["wavy", "bright"]
Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels


@dataclass(frozen=True)
class Scene:
    """One image and what is in it.

    Attributes:
        image: uint8 `[3, S, S]`.
        instances: uint8 `[S, S]`, 0 where nothing is, k + 1 where object k is.
        labels: index into `CLASSES` of every object.
    """

    image: np.ndarray
    instances: np.ndarray
    labels: tuple[int, ...]

    @property
    def semantic(self) -> np.ndarray:
        """uint8 `[S, S]`: 0 for the background, class + 1 for objects."""
        return np.array([0, *(label + 1 for label in self.labels)], dtype=np.uint8)[self.instances]


def make_scenes(
    count: int, size: int, seed: int, objects: tuple[int, int] = (2, 6), look: Look = "wavy"
) -> list[Scene]:
    """Draw `count` scenes of `size` x `size` pixels with `objects` (from, to) objects; fewer where there is no room."""
    rng = np.random.default_rng([seed, size])
    if look == "wavy":
        images_NCSS = _waves(rng, count, size)
    else:
        images_NCSS = np.zeros((count, 3, size, size), np.float32)
        images_NCSS += rng.uniform(0, 0.4 * 255, (count, 3, 1, 1)).astype(np.float32)
    drawn = []
    for image_CSS in images_NCSS:
        instances_SS = np.zeros((size, size), dtype=np.uint8)
        labels = []
        for number, box in enumerate(_place(rng, size, objects), 1):
            labels.append(int(rng.integers(len(CLASSES))))
            mask_hw = _outline(labels[-1], box)
            x1, y1, x2, y2 = box
            patch_Chw = image_CSS[:, y1:y2, x1:x2]
            patch_Chw[:, mask_hw] = _colour(patch_Chw, look, rng)[:, None]
            instances_SS[y1:y2, x1:x2][mask_hw] = number
        drawn.append((instances_SS, tuple(labels)))
    images_NCSS += rng.normal(0, NOISE[look], images_NCSS.shape).astype(np.float32)
    pixels_NCSS = images_NCSS.clip(0, 255).round().astype(np.uint8)
    return [Scene(image, *content) for image, content in zip(pixels_NCSS, drawn, strict=True)]


def _waves(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """A base colour and a sinusoid, float32 `[count, 3, S, S]` in about 0 .. 255."""
    base = rng.uniform(60, 180, (count, 3, 1, 1))
    amplitude = rng.uniform(5, 35, (count, 3, 1, 1))
    angle, phase = rng.uniform(0, 2 * np.pi, (2, count, 1, 1, 1))
    wavelength = rng.uniform(0.15, 0.8, (count, 1, 1, 1)) * size
    y, x = np.mgrid[:size, :size].astype(np.float32)
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / wavelength + phase)
    background: np.ndarray = (base + amplitude * wave).astype(np.float32)
    return background


def _place(rng: np.random.Generator, size: int, objects: tuple[int, int]) -> list[Box]:
    """Boxes that do not overlap."""
    boxes: list[Box] = []
    for _ in range(int(rng.integers(objects[0], objects[1] + 1))):
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


def _outline(label: int, box: Box) -> np.ndarray:
    """Which pixels of its box an object covers, bool `[h, w]`."""
    height, width = box[3] - box[1], box[2] - box[0]
    y, x = np.indices((height, width)) + 0.5
    v, u = 2 * y / height - 1, 2 * x / width - 1  # centres of pixels, -1 .. 1
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
    return mask


def _colour(patch_Chw: np.ndarray, look: Look, rng: np.random.Generator) -> np.ndarray:
    """A colour `[3]` that differs from what is there."""
    there = patch_Chw.mean((1, 2))
    if look == "bright":
        return there + rng.uniform(0.4 * 255, 0.6 * 255, 3)
    colour = rng.uniform(0, 255, 3)
    while np.abs(colour - there).max() < CONTRAST:
        colour = rng.uniform(0, 255, 3)
    return colour
