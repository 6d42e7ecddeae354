"""The data of both tasks as `elsa-dense-prepare` leaves it in `data/elsa-dense/<scale>/`: `coco.json` and `ade.json`."""

from pathlib import Path

from stages.common.dense.augmentation import DetectionAugmentation, SegmentationAugmentation
from stages.common.dense.batches import Augmentation, flip
from stages.common.dense.coco import CocoImages, open_coco
from stages.common.dense.semantic import AdeImages, open_ade
from stages.common.dense.splits import Split
from stages.elsa.dense.params import ElsaDenseParams, Task


def open_data(task: Task, prepared: Path, split: Split, params: ElsaDenseParams) -> CocoImages | AdeImages:
    """A split of the task's data set."""
    if task == "detection":
        return open_coco(prepared, split, first_label=1, masks=split == "train")
    return open_ade(prepared, split, params.segmentation.classes)


def class_count(images: CocoImages | AdeImages) -> int:
    """Classes of a data set, the background of detection aside."""
    return len(images.categories) if isinstance(images, CocoImages) else images.classes


def augmentation(task: Task, params: ElsaDenseParams) -> Augmentation:
    """How training images of the task are changed."""
    if task == "detection":
        d = params.detection
        return DetectionAugmentation(d.sizes, d.longest) if d.augment == "coco" else flip
    crop = params.segmentation.crop
    return flip if crop is None else SegmentationAugmentation(crop)
