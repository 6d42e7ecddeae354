"""Generated scenes: objects of six classes that do not overlap, on a wavy, noisy background.

They serve detection, instance and semantic segmentation where no data set is at hand. Legend: S side of an image.
"""

from dataclasses import dataclass

import numpy as np

CLASSES = ("circle", "square", "triangle", "ring", "plus", "stripes")
SMALLEST = 9  # pixels; the largest side is half the image, log-uniform between them
ATTEMPTS = 30  # to place an object without overlap
CONTRAST = 60  # least distance of an object's colour from what is there, in one of the channels
NOISE = 8.0

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


def make_scenes(count: int, size: int, seed: int, objects: tuple[int, int] = (2, 6)) -> list[Scene]:
    """Draw `count` scenes of `size` x `size` pixels with `objects` (from, to) objects; fewer where there is no room."""
    rng = np.random.default_rng([seed, size])
    images_NCSS = _backgrounds(rng, count, size)
    drawn = []
    for image_CSS in images_NCSS:
        instances_SS = np.zeros((size, size), dtype=np.uint8)
        labels = []
        for number, box in enumerate(_place(rng, size, objects), 1):
            labels.append(int(rng.integers(len(CLASSES))))
            _paint(image_CSS, instances_SS, box, labels[-1], number, rng)
        drawn.append((instances_SS, tuple(labels)))
    images_NCSS += rng.normal(0, NOISE, images_NCSS.shape).astype(np.float32)
    pixels_NCSS = images_NCSS.clip(0, 255).round().astype(np.uint8)
    return [Scene(image, *content) for image, content in zip(pixels_NCSS, drawn, strict=True)]


def _backgrounds(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
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


def _paint(
    image_CSS: np.ndarray,
    instances_SS: np.ndarray,
    box: Box,
    label: int,
    number: int,
    rng: np.random.Generator,
) -> None:
    """Paint one object in a colour that differs from what is there."""
    x1, y1, x2, y2 = box
    v, u = (
        (np.indices((y2 - y1, x2 - x1)) + 0.5).T * 2 / (y2 - y1, x2 - x1) - 1
    ).T  # centres of pixels, -1 .. 1
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
    patch = image_CSS[:, y1:y2, x1:x2]
    colour = rng.uniform(0, 255, 3)
    while np.abs(colour - patch.mean((1, 2))).max() < CONTRAST:
        colour = rng.uniform(0, 255, 3)
    patch[:, mask] = colour[:, None]
    instances_SS[y1:y2, x1:x2][mask] = number
