"""Detectors on a searched backbone: all heads learn, at the sizes and on the levels that they are built for."""

import pytest
import torch

from stages.zendet.detector import build_detector
from stages.zendet.method.structure import resnet_structure
from stages.zendet.params import Detector, HeadName

STRUCTURE = resnet_structure(8, (8, 8, 8, 16), (1, 1, 1, 1))
SIZE = 64
SMALL = Detector(channels=16, convs=1, levels=3, groups=4, sizes=[SIZE], longest=SIZE, zero_residual=False)


def two_images() -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """A bright square in the dark, and a picture without objects."""
    image = torch.zeros(3, SIZE, SIZE)
    image[:, 14:38, 20:44] = 1.0
    box = torch.tensor([[20.0, 14.0, 44.0, 38.0]])
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    return [image, torch.zeros(3, SIZE, SIZE)], [{"boxes": box, "labels": torch.tensor([1])}, nothing]


@pytest.mark.parametrize("head", ["gfl", "fcos", "retinanet"])
def test_heads_learn_one_object(head: HeadName) -> None:
    torch.manual_seed(0)
    detector = build_detector(STRUCTURE, head, 2, SMALL)
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


def test_the_pyramid_goes_on_beyond_p5() -> None:
    detector = build_detector(STRUCTURE, "gfl", 2, SMALL.model_copy(update={"levels": 5}))
    maps = detector.get_submodule("backbone")(torch.zeros(1, 3, 256, 256))
    assert list(maps) == ["p3", "p4", "p5", "p6", "p7"]
    assert [p.shape[-1] for p in maps.values()] == [256 // stride for stride in (8, 16, 32, 64, 128)]
    last = detector.get_submodule("backbone.fpn.extra_blocks.convs.1")
    assert torch.equal(last(maps["p6"]), maps["p7"])
