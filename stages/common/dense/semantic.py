"""Images and label maps of a folder laid out like ADE20K: `{images,annotations}/{training,validation}/`.

A label map is a grey or palette PNG of the image's name; 0 takes no part, k + 1 is class k (ADE20K: 150 classes).
A prepare stage calls `list_ade`, later stages `open_ade`.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from stages.common.dense.coco import Target
from stages.common.dense.splits import SPLITS, Split, choose, read_listing, write_listing
from stages.common.stage.errors import InputError

LISTING = "ade.json"
IGNORED = 255
FOLDERS: dict[Split, str] = {"train": "training", "val": "validation"}


def image_folder(root: Path, split: Split) -> Path:
    """Where the images of a split are."""
    return root / "images" / FOLDERS[split]


def label_folder(root: Path, split: Split) -> Path:
    """Where its label maps are."""
    return root / "annotations" / FOLDERS[split]


def list_ade(root: Path, counts: dict[Split, int | None], output: Path) -> None:
    """Check a folder and write `output/ade.json`: the images of each split that take part.

    Args:
        root: the folder. counts: images of each split, None for all.

    Raises:
        InputError: a folder is missing or empty, or an image has no label map.
    """
    chosen: dict[Split, list[str]] = {}
    for split in SPLITS:
        folder, labels = image_folder(root, split), label_folder(root, split)
        names = sorted(p.name for p in folder.glob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if not names:
            raise InputError(f"{folder}: not a folder of images (jpg or png)")
        chosen[split] = choose(names, counts[split])
        for name in chosen[split]:
            if not (labels / name).with_suffix(".png").is_file():
                raise InputError(
                    f"{(labels / name).with_suffix('.png')}: not found; every image needs a label map"
                )
    write_listing(output / LISTING, root, chosen)


def open_ade(prepared: Path, split: Split, classes: int) -> "AdeImages":
    """A split as a prepare stage has listed it."""
    root, names = read_listing(prepared / LISTING, split)
    return AdeImages(root, split, names, classes)


class AdeImages(Dataset[tuple[Tensor, Target]]):
    """Images in 0 .. 1, float32 `[3, H, W]`, and targets with `semantic`, int64 `[H, W]`: 0 .. classes - 1, or `IGNORED`."""

    def __init__(self, root: Path, split: Split, names: list[str], classes: int) -> None:
        self.root, self.split, self.names, self.classes = root, split, names, classes

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        image_HW3 = _pixels(image_folder(self.root, self.split) / self.names[index], "RGB")
        path = (label_folder(self.root, self.split) / self.names[index]).with_suffix(".png")
        value_HW = _pixels(path, None)
        if value_HW.shape != image_HW3.shape[:2]:
            shapes = [" x ".join(map(str, a.shape)) for a in (value_HW, image_HW3[..., 0])]
            raise InputError(f"{path}: must be a grey map of the image's size {shapes[1]}, is {shapes[0]}")
        if value_HW.max() > self.classes:
            raise InputError(f"{path}: has the value {value_HW.max()}; allowed are 0 .. {self.classes}")
        label_HW = torch.from_numpy(value_HW.astype(np.int64)) - 1
        label_HW[label_HW < 0] = IGNORED
        return torch.from_numpy(image_HW3).permute(2, 0, 1).float() / 255, {"semantic": label_HW}


def _pixels(path: Path, mode: str | None) -> np.ndarray:
    """Pixels of an image file; as they are where `mode` is None."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.array(image if mode is None else image.convert(mode))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable image ({error})") from None
