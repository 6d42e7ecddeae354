"""Images and objects of a folder laid out like COCO: `{train,val}2017/` and `annotations/instances_{train,val}2017.json`.

A prepare stage calls `list_coco`, which checks the folder and writes a listing; later stages call `open_coco`.
"""

import contextlib
import io
import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from stages.common.dense.splits import SPLITS, Split, choose, read_listing, write_listing
from stages.common.stage.errors import InputError

Target = dict[str, Tensor]
LISTING = "coco.json"


def image_folder(root: Path, split: Split) -> Path:
    """Where the images of a split are."""
    return root / f"{split}2017"


def annotation_file(root: Path, split: Split) -> Path:
    """Where the objects of a split are described."""
    return root / "annotations" / f"instances_{split}2017.json"


def read_annotations(path: Path) -> dict[str, Any]:
    """The content of an annotation file, checked.

    Raises:
        InputError: the file is missing, no JSON, or has an entry that is not what COCO allows; it is named.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: not found") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not JSON ({' '.join(str(error).split())[:100]})") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{path}: no list '{key}'; an annotation file of COCO has one")
    images = {
        image["id"]: image
        for image in _entries(path, content, "images", ("id", "file_name", "height", "width"))
    }
    categories = {entry["id"] for entry in _entries(path, content, "categories", ("id",))}
    for entry in _entries(
        path, content, "annotations", ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    ):
        where = f"{path}: annotation {entry['id']}"
        if entry["image_id"] not in images:
            raise InputError(f"{where}: image_id {entry['image_id']!r} is none of the images")
        if entry["category_id"] not in categories:
            raise InputError(f"{where}: category_id {entry['category_id']!r} is none of the categories")
        _check_box(where, entry["bbox"])
        if "segmentation" in entry:
            _check_mask(where, entry["segmentation"], images[entry["image_id"]])
    return content


def _entries(path: Path, content: dict[str, Any], key: str, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """The entries of a list; each has the fields and an id of its own."""
    ids = set()
    for place, entry in enumerate(content[key]):
        missing = [field for field in fields if not isinstance(entry, dict) or field not in entry]
        if missing:
            raise InputError(f"{path}: {key}[{place}]: no '{missing[0]}'")
        if not isinstance(entry["id"], int) or entry["id"] in ids:
            raise InputError(f"{path}: {key}[{place}]: id {entry['id']!r}: must be a whole number, used once")
        ids.add(entry["id"])
    return content[key]


def _check_box(where: str, box: Any) -> None:
    numbers = isinstance(box, list) and all(isinstance(v, int | float) and math.isfinite(v) for v in box)
    if not numbers or len(box) != 4 or min(box[2:]) < 0:
        raise InputError(f"{where}: bbox {box!r}: must be [x, y, width, height] in pixels")


def _check_mask(where: str, mask: Any, image: dict[str, Any]) -> None:
    """Polygons, or run lengths (a list or a string) of the image's size."""
    if isinstance(mask, list):
        if not all(isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 for part in mask):
            raise InputError(f"{where}: segmentation: a polygon must be [x1, y1, x2, y2, x3, y3, ...]")
    elif not isinstance(mask, dict) or not {"size", "counts"} <= mask.keys():
        raise InputError(f"{where}: segmentation: must be polygons or run lengths (size and counts)")
    elif list(mask["size"]) != [image["height"], image["width"]]:
        size = f"{image['height']} x {image['width']}"
        raise InputError(f"{where}: segmentation: size {mask['size']}, but the image is {size}")


def list_coco(root: Path, counts: dict[Split, int | None], output: Path, masks: bool) -> None:
    """Check a folder and write `output/coco.json`; training images are among those that have an object.

    Args:
        root: the folder. counts: images of each split, None for all.
        masks: whether every object needs a segmentation.

    Raises:
        InputError: an annotation file, an image folder or a segmentation is missing or damaged.
    """
    chosen: dict[Split, list[int]] = {}
    for split in SPLITS:
        path = annotation_file(root, split)
        content = read_annotations(path)
        objects = [a for a in content["annotations"] if not a["iscrowd"]]
        bare = next((a["id"] for a in objects if masks and "segmentation" not in a), None)
        if bare is not None:
            raise InputError(f"{path}: annotation {bare}: no segmentation; instance masks need one")
        shown = {a["image_id"] for a in objects}
        ids = sorted(i["id"] for i in content["images"] if split == "val" or i["id"] in shown)
        if not ids:
            raise InputError(f"{path}: no images with objects")
        chosen[split] = choose(ids, counts[split])
        names = {image["id"]: image["file_name"] for image in content["images"]}
        folder = image_folder(root, split)
        absent = next((names[i] for i in chosen[split] if not (folder / names[i]).is_file()), None)
        if absent is not None:
            raise InputError(f"{folder / absent}: not found, though {path.name} lists it")
    write_listing(output / LISTING, root, chosen)


def open_coco(prepared: Path, split: Split, first_label: int, masks: bool) -> "CocoImages":
    """A split as a prepare stage has listed it."""
    root, ids = read_listing(prepared / LISTING, split)
    return CocoImages(root, split, ids, first_label, masks)


class CocoImages(Dataset[tuple[Tensor, Target]]):
    """Images in 0 .. 1, float32 `[3, H, W]`, and targets as torchvision's detectors take them.

    A target has boxes `[G, 4]` (x1, y1, x2, y2 in pixels), labels `[G]` (categories in the order of their ids, counted from
    `first_label`: 1 where 0 is the background), and masks uint8 `[G, H, W]` where they are asked for. Crowds are no
    targets; the evaluation knows them.
    """

    def __init__(self, root: Path, split: Split, ids: list[int], first_label: int, masks: bool) -> None:
        from torchvision.datasets import CocoDetection

        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools talks
            self.source = CocoDetection(str(image_folder(root, split)), str(annotation_file(root, split)))
        self.ids, self.masks = ids, masks
        self.categories = dict(enumerate(sorted(self.source.coco.getCatIds()), first_label))  # by label
        self._labels = {category: label for label, category in self.categories.items()}

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def _positions(self) -> dict[int, int]:
        """Position of every image id in torchvision's data set."""
        return {image: position for position, image in enumerate(self.source.ids)}

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        from torchvision.transforms.functional import pil_to_tensor

        try:
            picture, objects = self.source[self._positions[self.ids[index]]]
        except OSError as error:
            raise InputError(f"image {self.ids[index]}: not readable ({error})") from None
        image_CHW = pil_to_tensor(picture.convert("RGB")).float() / 255
        kept = [o for o in objects if not o["iscrowd"] and o["bbox"][2] >= 1 and o["bbox"][3] >= 1]
        box_G4 = torch.tensor([o["bbox"] for o in kept], dtype=torch.float32).view(-1, 4)
        box_G4[:, 2:] += box_G4[:, :2]
        labels = torch.tensor([self._labels[o["category_id"]] for o in kept], dtype=torch.long)
        target = {"boxes": box_G4, "labels": labels}
        if self.masks:
            mask_GHW = np.zeros((len(kept), *image_CHW.shape[1:]), dtype=np.uint8)
            for place, o in enumerate(kept):
                mask_GHW[place] = self.source.coco.annToMask(o)
            target["masks"] = torch.from_numpy(mask_GHW)
        return image_CHW, target

    def ground_truth(self) -> dict[str, Any]:
        """COCO's annotation dict, of these images only."""
        content, chosen = self.source.coco.dataset, set(self.ids)
        return {
            "images": [image for image in content["images"] if image["id"] in chosen],
            "annotations": [a for a in content["annotations"] if a["image_id"] in chosen],
            "categories": content["categories"],
        }
