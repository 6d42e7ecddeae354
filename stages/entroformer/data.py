"""Prepared data as tensors: `train.safetensors` and `test.safetensors` of `data/entroformer/<scale>/`.

`train`: pictures uint8 `[3, H, W]` of any size, by number. `test`: `crops` uint8 `[N, 3, c, c]`, and pictures
`picture/<name>`.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


class TrainingCrops:
    """Random crops, mirrored and turned upside down at random; deterministic in (seed, step)."""

    def __init__(self, prepared: Path, crop: int) -> None:
        arrays = load_file(prepared / "train.safetensors")
        self.pictures = [arrays[name] for name in sorted(arrays)]
        self.crop = crop

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        """Crops `[size, 3, crop, crop]` in [0, 1]."""
        crops = []
        for number in torch.randint(len(self.pictures), (size,), generator=generator).tolist():
            picture = self.pictures[number]
            top, left, flip = torch.rand(3, generator=generator).tolist()
            row = int(top * (picture.shape[1] - self.crop + 1))
            column = int(left * (picture.shape[2] - self.crop + 1))
            crop = picture[:, row : row + self.crop, column : column + self.crop]
            sides = [axis for axis, bit in ((1, 1), (2, 2)) if int(flip * 4) & bit]
            crops.append(crop.flip(sides))
        return torch.stack(crops).float() / 255


def batches(
    crops: TrainingCrops, size: int, seed: int, first: int, steps: int
) -> Iterator[tuple[Tensor, torch.Generator]]:
    """The batch of every step from `first`, with the step's own generator for noise and masks."""
    for step in range(first, steps):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        yield crops.batch(size, generator), generator


def held_out_crops(prepared: Path) -> Tensor:
    """Crops `[N, 3, c, c]` in [0, 1]."""
    return load_file(prepared / "test.safetensors")["crops"].float() / 255


def held_out_pictures(prepared: Path) -> dict[str, Tensor]:
    """Whole pictures uint8 `[3, H, W]` by name."""
    arrays = load_file(prepared / "test.safetensors")
    return {
        name.removeprefix("picture/"): value
        for name, value in sorted(arrays.items())
        if name.startswith("picture/")
    }
