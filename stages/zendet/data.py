"""The prepared data of a run, generated scenes or COCO on disk, behind one interface.

`data/zendet/<scale>/` has `train.safetensors` and `val.safetensors` (scenes: images, boxes, labels, image; see
`stages.zendet.scenes`), or `coco.json`: the root, and per split the image ids in use.
"""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stages.zendet.method.metrics import COCO_AREAS, Target, coco_ground_truth
from stages.zendet.scenes import CLASSES

Split = Literal["train", "val"]
SCENE_AREAS = (16, 32)  # sides between small, medium and large at 128 px; COCO's are 32 and 96


class Images(Dataset[tuple[Tensor, Target]]):
    """Images in 0 .. 1 `[3, H, W]` and their objects: boxes `[G, 4]` in pixels, labels `[G]`."""

    categories: list[int]  # category id of each label in the ground truth
    areas: tuple[int, int]
    name: str

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        raise NotImplementedError

    def ground_truth(self) -> dict[str, Any]:
        """COCO's annotation dict."""
        raise NotImplementedError

    def image_id(self, index: int) -> int:
        """The image's id in the ground truth."""
        raise NotImplementedError

    def batches(
        self, order: list[list[int]], workers: int = 0
    ) -> Iterator[tuple[list[Tensor], list[Target]]]:
        """Images and targets of each list of indices."""
        yield from DataLoader(self, batch_sampler=order, num_workers=workers, collate_fn=_lists)


def _lists(items: list[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    return [image for image, _ in items], [target for _, target in items]


class Scenes(Images):
    """Generated scenes in memory."""

    areas = SCENE_AREAS
    name = "scenes"

    def __init__(self, path: Path) -> None:
        self.categories = list(range(len(CLASSES)))
        content = load_file(path)
        self.images = content["images"]
        objects = content["image"].bincount(minlength=len(self.images)).tolist()
        self.targets = [
            {"boxes": boxes, "labels": labels}
            for boxes, labels in zip(
                content["boxes"].split(objects), content["labels"].split(objects), strict=True
            )
        ]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        return self.images[index].float() / 255, self.targets[index]

    def ground_truth(self) -> dict[str, Any]:
        """COCO's annotation dict."""
        height, width = self.images.shape[-2:]
        return coco_ground_truth([(height, width)] * len(self), self.targets, len(CLASSES))

    def image_id(self, index: int) -> int:
        """Scenes are numbered from 0."""
        return index


class Coco(Images):
    """Some of COCO's images; crowds take no part in training."""

    areas = COCO_AREAS
    name = "coco"

    def __init__(self, root: Path, split: Split, ids: list[int]) -> None:
        from torchvision.datasets import CocoDetection

        self.source = CocoDetection(
            str(root / f"{split}2017"), str(root / "annotations" / f"instances_{split}2017.json")
        )
        self.categories = sorted(self.source.coco.getCatIds())
        self.labels = {category: label for label, category in enumerate(self.categories)}
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def positions(self) -> dict[int, int]:
        """Position of every image id in torchvision's data set."""
        return {image: position for position, image in enumerate(self.source.ids)}

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        from torchvision.transforms.functional import pil_to_tensor

        picture, objects = self.source[self.positions[self.ids[index]]]
        kept = [o for o in objects if not o["iscrowd"] and o["bbox"][2] >= 1 and o["bbox"][3] >= 1]
        box_G4 = torch.tensor([o["bbox"] for o in kept], dtype=torch.float32).view(-1, 4)
        box_G4[:, 2:] += box_G4[:, :2]
        labels = torch.tensor([self.labels[o["category_id"]] for o in kept], dtype=torch.long)
        return pil_to_tensor(picture.convert("RGB")).float() / 255, {"boxes": box_G4, "labels": labels}

    def ground_truth(self) -> dict[str, Any]:
        """COCO's annotation dict, of these images only."""
        content, chosen = self.source.coco.dataset, set(self.ids)
        return {
            "images": [image for image in content["images"] if image["id"] in chosen],
            "annotations": [a for a in content["annotations"] if a["image_id"] in chosen],
            "categories": content["categories"],
        }

    def image_id(self, index: int) -> int:
        """COCO's own."""
        return self.ids[index]


def read_images(folder: Path, split: Split) -> Images:
    """A split of a prepared data set."""
    listing = folder / "coco.json"
    if not listing.exists():
        return Scenes(folder / f"{split}.safetensors")
    content = json.loads(listing.read_text())
    return Coco(Path(content["root"]), split, content[split])
