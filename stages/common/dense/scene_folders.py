"""Generated scenes as folders that look like COCO's and ADE20K's, so that one code reads both."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from stages.common.dense import coco, semantic
from stages.common.dense.params import DenseData
from stages.common.dense.scenes import CLASSES, Scene, make_scenes
from stages.common.dense.splits import SPLITS, Split

SEEDS: dict[Split, int] = {"train": 0, "val": 1}


def write_coco_scenes(data: DenseData, root: Path) -> None:
    """Draw scenes and write `train2017/`, `val2017/` and `annotations/` into `root`; masks are run lengths."""
    for split in SPLITS:
        scenes = _scenes(data, split)
        folder = coco.image_folder(root, split)
        folder.mkdir(parents=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, scene in enumerate(scenes):
            name = f"{number:06}.png"
            _save(scene.image.transpose(1, 2, 0), folder / name)
            height, width = scene.instances.shape
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            for annotation in _annotations(scene):
                annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation})
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        path = coco.annotation_file(root, split)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))


def write_ade_scenes(data: DenseData, root: Path) -> None:
    """Draw scenes and write `images/` and `annotations/`, each with `training/` and `validation/`, into `root`.

    Label maps have 1 for the background, class + 2 for objects; 0, which ADE20K leaves out, is nowhere.
    """
    for split in SPLITS:
        folders = semantic.image_folder(root, split), semantic.label_folder(root, split)
        for folder in folders:
            folder.mkdir(parents=True)
        for number, scene in enumerate(_scenes(data, split)):
            _save(scene.image.transpose(1, 2, 0), folders[0] / f"{number:06}.png")
            _save(scene.semantic + 1, folders[1] / f"{number:06}.png")


def _scenes(data: DenseData, split: Split) -> list[Scene]:
    count = data.train_images if split == "train" else data.val_images
    style = data.scenes
    assert count is not None and style is not None  # noqa: PT018
    return make_scenes(count, style.size, SEEDS[split], (style.objects[0], style.objects[1]), style.look)


def _annotations(scene: Scene) -> list[dict[str, Any]]:
    """COCO's entry for every object; boxes are tight."""
    from pycocotools import mask as run_lengths

    found = []
    for number, label in enumerate(scene.labels, 1):
        mask = scene.instances == number
        code = run_lengths.encode(np.asfortranarray(mask, dtype=np.uint8))
        box = run_lengths.toBbox(code).tolist()
        segmentation = {"size": list(code["size"]), "counts": code["counts"].decode()}
        found.append(
            {
                "category_id": label + 1, "bbox": box, "area": int(mask.sum()), "iscrowd": 0,
                "segmentation": segmentation,
            }
        )  # fmt: skip
    return found


def _save(pixels: np.ndarray, path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
