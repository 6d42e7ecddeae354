"""Batches, augmentations, schedules, the training loop and inference of dense tasks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.data import Dataset

from stages.common.dense import training
from stages.common.dense.augmentation import DetectionAugmentation, SegmentationAugmentation
from stages.common.dense.batches import Item, batch_order, flip, training_batches
from stages.common.dense.inference import segment
from stages.common.dense.params import DenseData, Recipe
from stages.common.dense.semantic import IGNORED
from stages.common.dense.training import fit, learning_rate, optimizer_of
from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.errors import ParameterError

CPU = torch.device("cpu")
RECIPE: dict[str, Any] = {
    "steps": 6, "batch": 2, "optimizer": "adamw", "lr": 0.1, "weight_decay": 0.05, "schedule": "cosine", "drops": [],
    "warmup": 0, "clip": 1.0, "precision": "float32", "workers": 0,
}  # fmt: skip


class Log:
    """Takes what a RunLog would."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        self.steps.append(step)


class Pictures(Dataset[Item]):
    """Five pictures with two objects each, told apart by their brightness."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Item:
        image = torch.full((3, 24, 32), index / 10)
        masks = torch.zeros(2, 24, 32, dtype=torch.uint8)
        masks[0, 2:10, 1:9] = 1
        masks[1, 12:22, 14:30] = 1
        boxes = torch.tensor([[1.0, 2.0, 9.0, 10.0], [14.0, 12.0, 30.0, 22.0]])
        image = image + 0.5 * masks.sum(0)
        semantic = masks.sum(0).long()
        return image, {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks, "semantic": semantic}


class Line(nn.Module):
    """Stands in for a detector: two numbers, and dropout as a user of torch's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(1, 1)), nn.Parameter(torch.zeros(1))

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        x = nn.functional.dropout(torch.stack(images).mean((1, 2, 3)), 0.3)
        y = torch.stack([target["boxes"].mean() for target in targets])
        loss = (self.weight[0, 0] * x + self.bias - y).square().mean()
        return {"half": loss / 2, "rest": loss / 2}


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 40), st.integers(1, 8), st.integers(1, 60), st.integers(0, 99))
def test_every_pass_shows_every_image_once(images: int, batch: int, steps: int, seed: int) -> None:
    batch = min(batch, images)
    order = batch_order(images, batch, steps, seed)
    assert len(order) == steps
    assert all(len(set(indices)) == batch for indices in order)
    per_pass = images // batch
    for start in range(0, steps, per_pass):
        shown = [index for indices in order[start : start + per_pass] for index in indices]
        assert len(set(shown)) == len(shown)
    assert order[: steps // 2] == batch_order(images, batch, steps // 2, seed)


def test_a_batch_that_is_too_large_is_told_in_one_line() -> None:
    with pytest.raises(ParameterError, match="batch = 9: must not exceed the 8 training images"):
        batch_order(8, 9, 5, 0)


def test_batches_are_the_same_after_a_resumption() -> None:
    whole = list(training_batches(Pictures(), flip, 2, 6, seed=3, first=0, workers=0))
    rest = list(training_batches(Pictures(), flip, 2, 6, seed=3, first=4, workers=0))
    assert len(whole) == 6
    for (images, targets), (again, others) in zip(whole[4:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(images, again, strict=True))
        assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(targets, others, strict=True))


def tight(masks: Tensor) -> Tensor:
    found = []
    for mask in masks:
        rows, columns = mask.nonzero(as_tuple=True)
        found.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return torch.tensor(found, dtype=torch.float32).view(-1, 4)


def test_flip_moves_all_that_a_target_has() -> None:
    image, target = Pictures()[1]
    flips = 0
    for seed in range(40):
        torch.manual_seed(seed)
        mirrored, moved = flip(image, target)
        assert torch.equal(tight(moved["masks"]), moved["boxes"])
        assert torch.equal(moved["semantic"], moved["masks"].sum(0))
        assert torch.equal(mirrored > 0.3, (moved["semantic"] > 0).expand(3, -1, -1))
        flips += not torch.equal(moved["boxes"], target["boxes"])
    assert 8 < flips < 32


def test_detection_augmentation_keeps_boxes_and_masks_together() -> None:
    augment = DetectionAugmentation((48, 60), 90, crop_sizes=(30, 40), crop=(16, 28))
    image, target = Pictures()[1]
    sizes, kept = set(), set()
    for seed in range(60):
        torch.manual_seed(seed)
        changed, moved = augment(image, target)
        height, width = changed.shape[-2:]
        assert type(changed) is Tensor
        shorts = min(abs(min(height, width) - short) for short in (48, 60))
        assert min(shorts, abs(max(height, width) - 90)) <= 1  # torchvision rounds down
        assert len(moved["boxes"]) == len(moved["labels"]) == len(moved["masks"])
        assert moved["masks"].shape[1:] == (height, width)
        shown = moved["masks"].bool().flatten(1).any(1)
        apart = (tight(moved["masks"][shown]) - moved["boxes"][shown]).abs()
        assert apart.numel() == 0 or apart.max() <= 60 / 16 + 1  # a pixel of the crop, and one of the result
        sizes.add((height, width))
        kept.add(tuple(moved["labels"].tolist()))
    assert len(sizes) > 4
    assert {(1, 2), (1,), (2,)} <= kept  # a crop may lose an object


def test_segmentation_augmentation_crops_and_pads() -> None:
    augment = SegmentationAugmentation(40, short=24, longest=96)
    image, target = Pictures()[1]
    padded = 0
    for seed in range(30):
        torch.manual_seed(seed)
        changed, moved = augment(image, target)
        assert changed.shape == (3, 40, 40)
        assert moved["semantic"].shape == (40, 40)
        assert set(moved["semantic"].unique().tolist()) <= {0, 1, 2, IGNORED}
        padded += bool((moved["semantic"] == IGNORED).any())
    assert 0 < padded < 30


def test_segmentation_crops_are_drawn_again_where_one_class_has_too_much() -> None:
    image, label = torch.rand(3, 40, 160), torch.zeros(40, 160, dtype=torch.long)
    label[:, 120:] = 1

    def share(most: float) -> float:
        augment = SegmentationAugmentation(40, short=40, longest=160, ratios=(1.0, 1.0), most=most)
        shares = []
        for seed in range(20):
            torch.manual_seed(seed)
            counts = augment(image, {"semantic": label})[1]["semantic"].flatten().bincount(minlength=2)
            shares.append(float(counts.max() / counts.sum()))
        return sum(shares) / len(shares)

    assert share(0.75) < share(1.1) - 0.05


@pytest.mark.parametrize("schedule", ["cosine", "linear", "steps"])
def test_learning_rates(schedule: str) -> None:
    drops = [0.5, 0.75] if schedule == "steps" else []
    recipe = Recipe(**RECIPE | {"steps": 100, "warmup": 9, "lr": 1.0, "schedule": schedule, "drops": drops})
    rates = [learning_rate(step, recipe) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[0] == pytest.approx(0.1, rel=0.01)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    if schedule == "steps":
        assert (rates[49], rates[50], rates[75]) == pytest.approx((1, 0.1, 0.01))
    else:
        assert rates[-1] < 0.02


@pytest.mark.parametrize(
    "change", [{"drops": [0.5]}, {"schedule": "steps"}, {"schedule": "steps", "drops": [1.5]}, {"steps": 0}]
)
def test_wrong_recipes(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Recipe(**RECIPE | change)


@pytest.mark.parametrize(
    "change",
    [{"train_images": None}, {"scenes": None}, {"scenes": {"size": 64, "objects": [3, 1], "look": "wavy"}}],
)
def test_wrong_data(change: dict[str, Any]) -> None:
    scenes = {"size": 64, "objects": [1, 3], "look": "wavy"}
    right = {"kind": "scenes", "root": None, "train_images": 4, "val_images": 2, "scenes": scenes}
    DenseData.model_validate(right)
    with pytest.raises(ValidationError):
        DenseData.model_validate(right | change)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_vectors_are_not_decayed(optimizer: str) -> None:
    model = Line()
    groups = optimizer_of(model, Recipe(**RECIPE | {"optimizer": optimizer})).param_groups
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    assert groups[0]["params"][0] is model.weight
    assert groups[1]["params"][0] is model.bias


def test_a_training_that_is_broken_off_ends_with_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(**RECIPE)

    def run(checkpoint: Checkpoint) -> Line:
        model = Line()
        fit(model, Pictures(), flip, recipe, 1, Log(), checkpoint, CPU)  # type: ignore[arg-type]
        return model

    whole = run(Checkpoint(tmp_path / "whole.ckpt"))
    assert not (tmp_path / "whole.ckpt").exists()  # it takes less than a minute
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    rate = training.learning_rate
    seen: list[int] = []

    def breaks(step: int, recipe: Recipe) -> float:
        if step == 3:
            raise KeyboardInterrupt
        return rate(step, recipe)

    def noted(step: int, recipe: Recipe) -> float:
        seen.append(step)
        return rate(step, recipe)

    monkeypatch.setattr(training, "learning_rate", breaks)
    with pytest.raises(KeyboardInterrupt):
        run(Checkpoint(tmp_path / "run.ckpt"))
    monkeypatch.setattr(training, "learning_rate", noted)
    resumed = run(Checkpoint(tmp_path / "run.ckpt"))
    assert sorted(set(seen)) == [3, 4, 5]
    assert torch.equal(resumed.weight, whole.weight)
    assert torch.equal(resumed.bias, whole.bias)
    assert not torch.equal(whole.weight, torch.zeros(1, 1))


class Bright(nn.Module):
    """Segments by brightness; `shifted` moves what it says one pixel to the right."""

    def __init__(self, shifted: bool = False) -> None:
        super().__init__()
        self.shifted = shifted

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        found = []
        for image in images:
            object_HW = (image.mean(0) > 0.35).float()
            if self.shifted:
                object_HW = object_HW.roll(1, -1)
            found.append(10 * torch.stack([1 - object_HW, object_HW]))
        return found


class Halves(Pictures):
    """As `AdeImages` gives them: bright where the class is 1."""

    classes = 2

    def __getitem__(self, index: int) -> Item:
        image = torch.zeros(3, 16, 16)
        image[:, :, 8:] = 1
        return image, {"semantic": (image[0] > 0.5).long()}


def test_inference_at_one_and_several_scales() -> None:
    images: Any = Halves()
    exact = segment(Bright(), images, CPU)
    assert exact.tolist() == [[5 * 128, 0], [0, 5 * 128]]
    assert segment(Bright(), images, CPU, (0.5, 1.0, 2.0), mirrored=True).tolist() == exact.tolist()
    assert segment(Bright(shifted=True), images, CPU).tolist() == [[5 * 112, 5 * 16], [5 * 16, 5 * 112]]
    # mirror images shift the other way: the sum of both is undecided there, and the first class wins
    both = segment(Bright(shifted=True), images, CPU, mirrored=True)
    assert both.tolist() != segment(Bright(shifted=True), images, CPU).tolist()
