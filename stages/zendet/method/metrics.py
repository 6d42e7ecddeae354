"""COCO's average precision (pycocotools) on any data, with areas that fit the scale of its images."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

Target = dict[str, Tensor]  # objects of an image: boxes [G, 4] (x1, y1, x2, y2 in pixels), labels [G]
COCO_AREAS = (32, 96)  # sides between small, medium and large objects
METRICS = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")


def coco_ground_truth(
    sizes: Sequence[tuple[int, int]], targets: Sequence[Target], classes: int
) -> dict[str, Any]:
    """An annotation file in memory, for images numbered from 0 of (height, width) and targets with boxes and labels."""
    annotations: list[dict[str, Any]] = []
    for image, target in enumerate(targets):
        for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            width, height = box[2] - box[0], box[3] - box[1]
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image, "category_id": label, "iscrowd": 0,
                    "bbox": [box[0], box[1], width, height], "area": width * height,
                }
            )  # fmt: skip
    images = [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(sizes)]
    return {"images": images, "annotations": annotations, "categories": [{"id": c} for c in range(classes)]}


def coco_detections(image: int, detection: dict[str, Tensor]) -> list[dict[str, Any]]:
    """What a detector found in one image, as COCO's result files have it; labels are taken for category ids."""
    return [
        {
            "image_id": image,
            "category_id": label,
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "score": score,
        }
        for box, score, label in zip(
            detection["boxes"].tolist(),
            detection["scores"].tolist(),
            detection["labels"].tolist(),
            strict=True,
        )
    ]


def average_precision(
    ground_truth: dict[str, Any], detections: list[dict[str, Any]], areas: tuple[int, int] = COCO_AREAS
) -> dict[str, float]:
    """AP over ten IoUs, AP50, AP75, and AP of small, medium and large objects, all in percent.

    `areas` are the sides between small, medium and large. A size that no object has gives nan.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = ground_truth
        truth.createIndex()
        if not detections:
            return dict.fromkeys(METRICS, 0.0)
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        low, high = (side**2 for side in areas)
        evaluation.params.areaRng = [[0, 1e10], [0, low], [low, high], [high, 1e10]]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {
        name: 100 * value if value >= 0 else float("nan")
        for name, value in zip(METRICS, np.asarray(evaluation.stats[:6], dtype=float).tolist(), strict=True)
    }
