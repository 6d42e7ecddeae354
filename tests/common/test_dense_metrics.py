"""Average precision against a reference written out by hand, mean IoU against torchmetrics."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.common.dense.average_precision import average_precision, coco_results
from stages.common.dense.mean_iou import confusion, mean_iou
from stages.common.dense.semantic import IGNORED

SIDE = 40
AREAS = (10, 20)
Entry = dict[str, Any]


def random_case(seed: int, images: int = 4, classes: int = 3) -> tuple[Entry, list[Entry]]:
    """Rectangles as boxes and masks, some crowds, and detections near and far from them."""
    from pycocotools import mask as run_lengths

    rng = np.random.default_rng(seed)

    def rectangle() -> list[int]:
        x, y = rng.integers(0, SIDE - 8, 2)
        return [int(x), int(y), int(rng.integers(4, SIDE - x + 1)), int(rng.integers(4, SIDE - y + 1))]

    def code(box: list[int]) -> Entry:
        mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
        mask[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 1
        return run_lengths.encode(mask)

    annotations: list[Entry] = []
    results: list[Entry] = []
    for image in range(images):
        for _ in range(rng.integers(0, 6)):
            box, category = rectangle(), int(rng.integers(1, classes + 1))
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image, "category_id": category, "bbox": box,
                    "area": box[2] * box[3], "iscrowd": int(rng.random() < 0.15), "segmentation": code(box),
                }
            )  # fmt: skip
            for _ in range(rng.integers(0, 3)):
                x, y = (min(SIDE - 2, max(0, side + int(rng.integers(-2, 3)))) for side in box[:2])
                sides = [max(1, side + int(rng.integers(-2, 3))) for side in box[2:]]
                near = [x, y, min(sides[0], SIDE - x), min(sides[1], SIDE - y)]
                results.append({"image_id": image, "category_id": category, "bbox": near})
        for _ in range(rng.integers(0, 4)):
            results.append(
                {"image_id": image, "category_id": int(rng.integers(1, classes + 1)), "bbox": rectangle()}
            )
    for entry in results:
        entry |= {"score": float(rng.random()), "segmentation": code(entry["bbox"])}
    truth = {
        "images": [{"id": i, "height": SIDE, "width": SIDE} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": c} for c in range(1, classes + 1)],
    }
    return truth, results


def box_iou(found: list[int], true: Entry) -> float:
    """A crowd may be covered in part: then over the detection's own area."""
    x, y, width, height = true["bbox"]
    across = min(found[0] + found[2], x + width) - max(found[0], x)
    down = min(found[1] + found[3], y + height) - max(found[1], y)
    both, own = max(0, across) * max(0, down), found[2] * found[3]
    return both / own if true["iscrowd"] else both / (own + width * height - both)


def reference(truth: Entry, results: list[Entry], low: float = 0.0, high: float = 1e10) -> dict[float, float]:
    """AP at each IoU: greedy matching by score, precision made monotone, its mean at 101 recalls."""
    found: dict[float, float] = {}
    for threshold in np.linspace(0.5, 0.95, 10):
        per_class = []
        for category in (entry["id"] for entry in truth["categories"]):
            scores, hits, objects = [], [], 0
            for image in (entry["id"] for entry in truth["images"]):
                true = [
                    a for a in truth["annotations"] if (a["image_id"], a["category_id"]) == (image, category)
                ]
                aside = [bool(a["iscrowd"]) or not low <= a["area"] <= high for a in true]
                objects += aside.count(False)
                taken: set[int] = set()
                own = [r for r in results if (r["image_id"], r["category_id"]) == (image, category)]
                for result in sorted(own, key=lambda r: -r["score"])[:100]:
                    best = None
                    for counted in (True, False):  # objects that count come first
                        overlaps = {
                            k: box_iou(result["bbox"], a)
                            for k, a in enumerate(true)
                            if aside[k] != counted and (k not in taken or a["iscrowd"])
                        }
                        overlaps = {k: v for k, v in overlaps.items() if v >= threshold}
                        if overlaps:
                            best = max(overlaps, key=lambda k: (overlaps[k], k))
                            break
                    if best is not None:
                        taken.add(best)
                    area = result["bbox"][2] * result["bbox"][3]
                    if (best is None and not low <= area <= high) or (best is not None and aside[best]):
                        continue  # neither right nor wrong
                    scores.append(result["score"])
                    hits.append(best is not None)
            if not objects:
                continue
            right = np.array(hits, dtype=float)[np.argsort(-np.array(scores), kind="stable")].cumsum()
            recall, precision = right / objects, right / np.arange(1, len(right) + 1)
            at_least = [precision[recall >= r].max(initial=0.0) for r in np.linspace(0, 1, 101)]
            per_class.append(float(np.mean(at_least)))
        found[round(float(threshold), 2)] = 100 * float(np.mean(per_class)) if per_class else float("nan")
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_average_precision_is_the_reference(seed: int) -> None:
    """Rectangles' masks overlap as their boxes do, so that one reference serves both."""
    truth, results = random_case(seed)
    if not results or not truth["annotations"]:
        return
    expected = reference(truth, results)
    small, medium, large = (
        float(np.mean(list(reference(truth, results, low, high).values())))
        for low, high in ((0, AREAS[0] ** 2), (AREAS[0] ** 2, AREAS[1] ** 2), (AREAS[1] ** 2, 1e10))
    )
    for kind in ("bbox", "segm"):
        ours = average_precision(truth, results, kind, AREAS)
        assert ours["AP"] == pytest.approx(np.mean(list(expected.values())), abs=1e-6, nan_ok=True)
        assert ours["AP50"] == pytest.approx(expected[0.5], abs=1e-6, nan_ok=True)
        assert ours["AP75"] == pytest.approx(expected[0.75], abs=1e-6, nan_ok=True)
        for name, value in (("AP_S", small), ("AP_M", medium), ("AP_L", large)):
            assert ours[name] == pytest.approx(value, abs=1e-6, nan_ok=True)


def detection() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """One object, found: a disc in a box, as a detector gives it."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    disc = ((x - 20) ** 2 + (y - 15) ** 2 <= 81).float()
    found = {
        "boxes": torch.tensor([[11.0, 6.0, 30.0, 25.0]]),
        "scores": torch.tensor([0.9]),
        "labels": torch.tensor([2]),
        "masks": 0.2 + 0.6 * disc[None, None],
    }
    return found, disc


def test_what_a_detector_finds_becomes_cocos_results() -> None:
    from pycocotools import mask as run_lengths

    found, disc = detection()
    (result,) = coco_results(7, found, {2: 30})
    assert (result["image_id"], result["category_id"], result["bbox"]) == (7, 30, [11.0, 6.0, 19.0, 19.0])
    assert result["score"] == pytest.approx(0.9)
    assert np.array_equal(run_lengths.decode(result["segmentation"]), disc.numpy())
    del found["masks"]
    assert "segmentation" not in coco_results(7, found, {2: 30})[0]


def test_masks_and_boxes_are_judged_apart() -> None:
    """The box is right, the mask covers half of it: 100 for boxes, less for masks."""
    found, disc = detection()
    truth, _ = random_case(0, images=1, classes=1)
    (right,) = coco_results(0, found, {2: 1})
    truth["annotations"] = [{**right, "id": 1, "area": int(disc.sum()), "iscrowd": 0}]
    found["masks"][:, :, :15] = 0
    results = coco_results(0, found, {2: 1})
    before = dict(results[0])
    assert average_precision(truth, results, "bbox")["AP"] == pytest.approx(100)
    masks = average_precision(truth, results, "segm")
    assert masks["AP50"] == pytest.approx(100)
    assert masks["AP"] < 20
    assert results[0] == before  # pycocotools writes into what it is given


def test_nothing_found_is_no_precision() -> None:
    truth, _ = random_case(3)
    assert average_precision(truth, [], "segm")["AP"] == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_mean_iou_is_torchmetrics(seed: int, classes: int) -> None:
    from torchmetrics.functional.classification import multiclass_jaccard_index

    generator = torch.Generator().manual_seed(seed)
    predicted, label = torch.randint(0, classes, (2, 9, 7), generator=generator)
    label[torch.rand(9, 7, generator=generator) < 0.2] = IGNORED
    counts = confusion(predicted[:4], label[:4], classes) + confusion(predicted[4:], label[4:], classes)
    per_class = multiclass_jaccard_index(predicted, label, classes, average=None, ignore_index=IGNORED)
    shown = (counts.sum(0) + counts.sum(1)) > 0
    assert mean_iou(counts) == pytest.approx(100 * float(per_class[shown].mean()), abs=1e-4)


def test_a_class_that_is_nowhere_takes_no_part() -> None:
    label = torch.tensor([[0, 0, 1, IGNORED]])
    assert mean_iou(confusion(torch.tensor([[0, 0, 1, 2]]), label, 4)) == 100
    assert mean_iou(confusion(torch.tensor([[0, 3, 1, 2]]), label, 4)) == pytest.approx(
        100 * (0.5 + 1 + 0) / 3
    )
