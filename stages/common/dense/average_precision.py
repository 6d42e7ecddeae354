"""COCO's average precision of boxes and masks: pycocotools is the metric, this is the way to it."""

import contextlib
import io
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from torch import Tensor

Kind = Literal["bbox", "segm"]
COCO_AREAS = (32, 96)  # sides between small, medium and large objects, pixels
METRICS = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")
MASK_THRESHOLD = 0.5


def coco_results(
    image_id: int, detection: dict[str, Tensor], categories: Mapping[int, int]
) -> list[dict[str, Any]]:
    """What a detector found in one image, as COCO's result files have it.

    Args:
        image_id: the image's.
        detection: boxes `[D, 4]` (x1, y1, x2, y2), scores and labels `[D]`, perhaps masks `[D, 1, H, W]` (probabilities).
        categories: category id of each label.
    """
    found = [
        {
            "image_id": image_id, "category_id": categories[label], "score": score,
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
        }
        for box, score, label in zip(
            detection["boxes"].tolist(), detection["scores"].tolist(), detection["labels"].tolist(), strict=True
        )
    ]  # fmt: skip
    if "masks" in detection:
        from pycocotools import mask as run_lengths

        mask_DHW = (detection["masks"][:, 0] > MASK_THRESHOLD).cpu().numpy().astype(np.uint8)
        for entry, mask_HW in zip(found, mask_DHW, strict=True):
            entry["segmentation"] = run_lengths.encode(np.asfortranarray(mask_HW))
    return found


def average_precision(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    kind: Kind = "bbox",
    areas: tuple[int, int] = COCO_AREAS,
) -> dict[str, float]:
    """AP over ten IoUs, AP50, AP75, and AP of small, medium and large objects, all in percent.

    `ground_truth` is a COCO annotation dict, `areas` the sides between small, medium and large. A size that no
    object has gives nan.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools talks
        truth = COCO()
        truth.dataset = ground_truth
        truth.createIndex()
        if not results:  # which pycocotools does not take
            return dict.fromkeys(METRICS, 0.0)
        # it takes the kind from the first result, and changes what it is given: so of a mask no box goes in
        left_out = "segmentation" if kind == "bbox" else "bbox"
        given = [{key: value for key, value in entry.items() if key != left_out} for entry in results]
        evaluation = COCOeval(truth, truth.loadRes(given), kind)
        low, high = (side**2 for side in areas)
        evaluation.params.areaRng = [[0, 1e10], [0, low], [low, high], [high, 1e10]]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {
        name: 100 * value if value >= 0 else float("nan")
        for name, value in zip(METRICS, np.asarray(evaluation.stats[:6], dtype=float).tolist(), strict=True)
    }
