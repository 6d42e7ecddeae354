"""The images of this paper: in memory, or read from folders.

Data flow: `prepare` writes `data/transfgu/<scale>/<seed>/`. Small sets: `images.safetensors` with `train`, `test`,
`pretrain` (uint8 `[N, 3, H, W]`) and `label` of the test images (uint8 `[N, H, W]`, 255 ignored). Large ones:
`folders.json`, lists of files. Labels are never read in training.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from stages.common.stage.errors import InputError
from stages.transfgu.params import DataName, TransfguParams
from stages.transfgu.scenes import CLASSES

IGNORED = 255
CAMVID = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
CLASS_COUNTS: dict[DataName, int] = {
    "partscenes": len(CLASSES), "camvid": len(CAMVID), "cocostuff27": 27, "cocostuff171": 171, "coco80": 81,
    "cityscapes": 27, "voc": 21, "lip5": 6, "lip16": 17, "lip19": 20,
}  # fmt: skip
# the ids that COCO-Stuff's maps (id - 1) leave out
UNUSED_COCO = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
COCO_THINGS = 91


def class_names(name: DataName) -> list[str]:
    """Names of the evaluation's classes; numbers where the data set has too many."""
    known = {"partscenes": list(CLASSES), "camvid": list(CAMVID)}
    return known.get(name, [f"class {index}" for index in range(CLASS_COUNTS[name])])


def label_table(name: DataName, label_map: str | None) -> Tensor:
    """Class of each png value `[256]`, `IGNORED` where it has none.

    Raises:
        InputError: the map is missing or not a JSON object of whole numbers.
    """
    table = torch.full((256,), IGNORED, dtype=torch.uint8)
    if label_map is not None:
        try:
            pairs = {
                int(value): int(target) for value, target in json.loads(Path(label_map).read_text()).items()
            }
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f'{label_map}: not a JSON object {{"png value": class}} ({error})') from None
    elif name == "cityscapes":
        pairs = {value: value - 7 for value in range(7, 34)}
    elif name in ("cocostuff171", "coco80"):
        used = [value for value in range(182) if value not in UNUSED_COCO]
        things = sum(value < COCO_THINGS for value in used)
        pairs = {value: place for place, value in enumerate(used)}
        if name == "coco80":
            pairs = {value: place + 1 if place < things else 0 for value, place in pairs.items()}
    else:
        pairs = {value: value for value in range(CLASS_COUNTS[name])}
    for value, target in pairs.items():
        table[value] = target
    return table


class ArrayImages:
    """Images in memory, uint8 `[N, 3, H, W]`, with labels `[N, H, W]` or none."""

    def __init__(self, x_NCHW: Tensor, label_NHW: Tensor | None = None) -> None:
        self.x_NCHW, self.label_NHW = x_NCHW, label_NHW

    def __len__(self) -> int:
        return len(self.x_NCHW)

    def read(self, ids: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Images 0..255 of this size, float32 `[B, 3, *size]`, bilinear."""
        return resize(self.x_NCHW[list(ids)].float(), size)

    def labels(self, ids: Sequence[int]) -> Tensor:
        """Labels `[B, H, W]`, -1 ignored."""
        assert self.label_NHW is not None
        label = self.label_NHW[list(ids)].long()
        return torch.where(label == IGNORED, -1, label)


class FileImages:
    """Image files, and label files or none; read when asked for."""

    def __init__(
        self, files: Sequence[str], label_files: Sequence[str], table: Tensor | None, size: tuple[int, int]
    ) -> None:
        self.files, self.label_files, self.table, self.size = list(files), list(label_files), table, size

    def __len__(self) -> int:
        return len(self.files)

    def read(self, ids: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Images 0..255 of this size, float32 `[B, 3, *size]`, bilinear."""
        return torch.cat([resize(read_image(Path(self.files[index]))[None].float(), size) for index in ids])

    def labels(self, ids: Sequence[int]) -> Tensor:
        """Labels `[B, H, W]` at this set's size, nearest, -1 ignored."""
        assert self.table is not None
        parts = []
        for index in ids:
            value_HW = read_pixels(Path(self.label_files[index]), None)
            label = self.table[torch.from_numpy(value_HW).long().clamp(0, 255)].long()
            parts.append(F.interpolate(label[None, None].float(), self.size, mode="nearest")[0].long())
        labels = torch.cat(parts)
        return torch.where(labels == IGNORED, -1, labels)


Images = ArrayImages | FileImages


def resize(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, pixel centres."""
    return x_BCHW if x_BCHW.shape[-2:] == size else F.interpolate(x_BCHW, size, mode="bilinear")


def read_pixels(path: Path, mode: str | None) -> np.ndarray:
    """Pixels of an image file; palette indices where `mode` is None.

    Raises:
        InputError: it is not a readable image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if mode is not None and image.mode.startswith(
                ("I", "F")
            ):  # `convert` would clip these to white or black
                raise ValueError(f"pixels of kind {image.mode!r}; save it with 8 bits a channel")
            return np.array(image if mode is None else image.convert(mode))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a readable image ({error})") from None


def read_image(path: Path) -> Tensor:
    """uint8 `[3, H, W]`.

    Raises:
        InputError: it is not a readable image.
    """
    return torch.from_numpy(read_pixels(path, "RGB")).permute(2, 0, 1)


class PreparedData:
    """What `prepare` left for one seed: `train`, `test` and `pretrain` images."""

    def __init__(self, folder: Path, params: TransfguParams) -> None:
        if (folder / "images.safetensors").exists():
            arrays = load_file(folder / "images.safetensors")
            self.train: Images = ArrayImages(arrays["train"])
            self.test: Images = ArrayImages(arrays["test"], arrays["label"])
            self.pretrain: Images = ArrayImages(arrays["pretrain"]) if "pretrain" in arrays else self.train
            return
        listing = json.loads((folder / "folders.json").read_text())
        size = params.data.height, params.data.width
        table = label_table(params.data.name, params.data.label_map)
        self.train = self.pretrain = FileImages(listing["train"], [], None, size)
        self.test = FileImages(listing["test"], listing["label"], table, size)
