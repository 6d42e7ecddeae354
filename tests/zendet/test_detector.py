"""Detectors: they learn, they decode, they meet their interface; scenes are what they promise."""

import pytest
import torch

from stages.zendet.method.atss import assign, grid_anchors
from stages.zendet.method.detector import DetectorConfig, build_detector
from stages.zendet.method.metrics import average_precision, coco_detections, coco_ground_truth
from stages.zendet.method.structure import resnet_structure
from stages.zendet.scenes import CLASSES, MOST, SMALLEST, make_scenes
from stages.zendet.training import flip

STRUCTURE = resnet_structure(8, (8, 8, 8, 16), (1, 1, 1, 1))
SIZE = 64


def two_images() -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """A bright square in the dark, and a picture without objects."""
    image = torch.zeros(3, SIZE, SIZE)
    image[:, 14:38, 20:44] = 1.0
    box = torch.tensor([[20.0, 14.0, 44.0, 38.0]])
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    return [image, torch.zeros(3, SIZE, SIZE)], [{"boxes": box, "labels": torch.tensor([1])}, nothing]


@pytest.mark.parametrize("head", ["gfl", "fcos", "retinanet"])
def test_heads_learn_one_object(head: str) -> None:
    torch.manual_seed(0)
    config = DetectorConfig(head, 2, 16, 1, 3, 4, (SIZE,), SIZE)  # type: ignore[arg-type]
    detector = build_detector(STRUCTURE, config)
    images, targets = two_images()
    optimizer = torch.optim.AdamW(detector.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = sum(detector(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    detector.eval()
    with torch.no_grad():
        found, _ = detector(images)
    best = found["scores"].argmax()
    assert found["labels"][best] == 1
    if head == "fcos":  # regresses through a ReLU, which may die on an image as small as this
        return
    overlap = torch.tensor([20.0, 14.0, 44.0, 38.0]) - found["boxes"][best]
    assert overlap.abs().max() < 8


def test_no_objects_give_finite_losses() -> None:
    detector = build_detector(STRUCTURE, DetectorConfig("gfl", 2, 16, 1, 3, 4, (SIZE,), SIZE))
    images, targets = two_images()
    losses = detector(images[1:], targets[1:])
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["giou"] == losses["distribution"] == 0
    sum(losses.values()).backward()


def test_every_object_with_room_for_a_centre_has_a_positive_anchor() -> None:
    anchors = grid_anchors([(8, 8), (4, 4), (2, 2)], (8, 16, 32), torch.device("cpu"))
    scenes = make_scenes(20, SIZE, 0)
    for index in range(20):
        boxes = scenes["boxes"][scenes["image"] == index]
        owner = assign(anchors, boxes)
        assert owner.max() < len(boxes)
        positive = torch.cat(anchors)[owner >= 0]
        own = boxes[owner[owner >= 0]]
        centre = (positive[:, :2] + positive[:, 2:]) / 2
        assert ((centre > own[:, :2]) & (centre < own[:, 2:])).all()


def test_perfect_detections_have_full_precision_and_none_have_none() -> None:
    scenes = make_scenes(6, SIZE, 1)
    targets = [{key: scenes[key][scenes["image"] == i] for key in ("boxes", "labels")} for i in range(6)]
    truth = coco_ground_truth([(SIZE, SIZE)] * 6, targets, len(CLASSES))
    found = []
    for index, target in enumerate(targets):
        found += coco_detections(index, target | {"scores": torch.ones(len(target["labels"]))})
    assert average_precision(truth, found, (16, 32))["AP"] == pytest.approx(100)
    assert average_precision(truth, [], (16, 32))["AP"] == 0


def test_scenes_are_repeatable_and_as_described() -> None:
    scenes = make_scenes(30, SIZE, 0)
    again = make_scenes(30, SIZE, 0)
    assert all(torch.equal(scenes[key], again[key]) for key in scenes)
    assert not torch.equal(scenes["images"], make_scenes(30, SIZE, 1)["images"])
    sides = scenes["boxes"][:, 2:] - scenes["boxes"][:, :2]
    assert sides.min() >= SMALLEST
    assert sides.max() <= SIZE / 2
    counts = scenes["image"].bincount(minlength=30)
    assert counts.max() <= MOST
    assert set(scenes["labels"].tolist()) == set(range(len(CLASSES)))


def test_flip_twice_is_nothing() -> None:
    images, targets = two_images()
    once = flip(images[0], targets[0])
    assert once[1]["boxes"].tolist() == [[20.0, 14.0, 44.0, 38.0]]  # SIZE - 44, SIZE - 20: symmetric
    image, target = flip(*once)
    assert torch.equal(image, images[0])
    assert torch.equal(target["boxes"], targets[0]["boxes"])
