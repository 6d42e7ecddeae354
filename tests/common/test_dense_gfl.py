"""GFLV2 of the dense layer: assignment, losses, decoding. Parity with the authors' code: tests/zendet/test_golden.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stages.common.dense.atss import assign, grid_anchors
from stages.common.dense.gfl import REG_MAX, distribution_focal_loss, integral, quality_focal_loss
from stages.common.dense.gflv2 import GFLV2, GFLV2Config
from stages.common.dense.scenes import make_scenes

SIZE, CLASSES = 64, 2
STRIDES = (8, 16, 32)


class Pooled(nn.Module):
    """The least pyramid: the image's mean at every stride, in four channels."""

    out_channels = 4

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Conv2d(3, self.out_channels, 1)

    def forward(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        return {str(s): self.lift(nn.functional.avg_pool2d(x_BCHW, s)) for s in STRIDES}


def small() -> GFLV2:
    torch.manual_seed(0)
    return GFLV2(Pooled(), CLASSES, GFLV2Config(STRIDES, 1, 2, (SIZE,), SIZE))


def one_object() -> dict[str, Tensor]:
    return {"boxes": torch.tensor([[20.0, 14.0, 44.0, 38.0]]), "labels": torch.tensor([1])}


def nothing() -> dict[str, Tensor]:
    return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}


def test_positives_have_their_centre_in_their_object() -> None:
    anchors = grid_anchors([(8, 8), (4, 4), (2, 2)], STRIDES, torch.device("cpu"))
    positives = 0
    for scene in make_scenes(20, SIZE, 0):
        ys_xs = [(scene.instances == number).nonzero() for number in range(1, len(scene.labels) + 1)]
        boxes = torch.tensor(
            [[x.min(), y.min(), x.max() + 1, y.max() + 1] for y, x in ys_xs], dtype=torch.float32
        )
        owner = assign(anchors, boxes)
        assert owner.max() < len(boxes)
        positive, own = torch.cat(anchors)[owner >= 0], boxes[owner[owner >= 0]]
        centre = (positive[:, :2] + positive[:, 2:]) / 2
        assert ((centre > own[:, :2]) & (centre < own[:, 2:])).all()
        positives += len(own)
    assert positives > 20


def test_no_objects_give_finite_losses() -> None:
    losses = small()([torch.zeros(3, SIZE, SIZE)], [nothing()])
    assert isinstance(losses, dict)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["giou"] == losses["distribution"] == 0
    torch.stack(list(losses.values())).sum().backward()


def test_losses_in_mixed_precision_are_those_of_full_precision() -> None:
    images, targets = [torch.rand(3, SIZE, SIZE)], [one_object()]
    exact = small()(images, targets)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = small()(images, targets)
    assert isinstance(exact, dict)
    assert isinstance(mixed, dict)
    for name, loss in exact.items():
        assert loss.dtype == mixed[name].dtype == torch.float32
        assert mixed[name].item() == pytest.approx(loss.item(), rel=0.03)


@given(st.floats(0, REG_MAX - 0.1))
@settings(max_examples=40, deadline=None)
def test_distances_are_learned_from_the_two_bins_around_them(distance: float) -> None:
    """The loss is least where the expected distance is the target, with all mass on its two bins."""
    left = int(distance)
    share = torch.zeros(REG_MAX + 1)
    share[left], share[left + 1] = left + 1 - distance, distance - left
    best_1R = (share + 1e-12).log()[None]
    assert integral(best_1R.repeat(1, 4))[0, 0].item() == pytest.approx(distance, abs=1e-4)
    least = distribution_focal_loss(best_1R, torch.tensor([distance]))
    for shift in (-1, 1):
        other = distribution_focal_loss(best_1R.roll(shift, 1), torch.tensor([distance]))
        assert least < other


def test_quality_focal_loss_is_zero_at_its_target_and_nowhere_else() -> None:
    label, quality = torch.tensor([0, CLASSES]), torch.tensor([0.7, 0.0])
    target = torch.tensor([[0.7, 0.0], [0.0, 0.0]])
    assert quality_focal_loss(target, label, quality).tolist() == [0.0, 0.0]
    assert (quality_focal_loss((target + 0.1).clamp(0, 1), label, quality) > 0).all()


def test_detections_are_in_pixels_of_the_image_given() -> None:
    detector = small().eval()
    for name in ("gfl_cls.bias", "reg_conf.2.bias"):  # everything is an object
        nn.init.constant_(detector.head.get_parameter(name), 4.0)
    with torch.no_grad():
        (found,) = detector([torch.rand(3, 2 * SIZE, SIZE)])  # twice as high as the network's input
    assert isinstance(found, dict)
    assert 0 < len(found["scores"]) <= 100
    assert (found["scores"][:-1] >= found["scores"][1:]).all()
    box_D4 = found["boxes"]
    assert (box_D4 >= 0).all()
    assert box_D4[:, [0, 2]].max() <= SIZE
    assert SIZE < box_D4[:, [1, 3]].max() <= 2 * SIZE
