"""Training a detector and running it: deterministic in (seed, step), so that a checkpoint resumes to the same bytes."""

import contextlib
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, parallel, process_share
from stages.common.stage.progress import tick
from stages.common.stage.tracking import RunLog
from stages.zendet.data import Images
from stages.zendet.method.detector import DetectorConfig, build_detector
from stages.zendet.method.metrics import Target, coco_detections
from stages.zendet.method.structure import Structure
from stages.zendet.params import HeadName, Train, ZendetParams

LOG_STEPS = 20
CHECKPOINT_SECONDS = 60.0
DROPS = (65 / 73, 71 / 73)  # of the schedule, where the rate falls to a tenth (card, section 7)
GRADIENT_NORM = 35.0
TEST_BATCH = 20


@dataclass(frozen=True)
class Schedule:
    """Learning rate over the steps of one training."""

    recipe: Train
    steps: int

    def rate(self, step: int) -> float:
        """The rate of a step."""
        recipe = self.recipe
        if recipe.schedule == "cosine":
            factor = 0.5 + 0.5 * math.cos(math.pi * step / self.steps)
        else:
            factor = 0.1 ** sum(step >= drop * self.steps for drop in DROPS)
        if step < recipe.warmup:
            factor *= 0.1 + 0.9 * step / recipe.warmup
        return recipe.lr * factor


def detector_for(structure: Structure, head: HeadName, classes: int, params: ZendetParams) -> nn.Module:
    """A fresh detector of the configured size, its convolutions laid out channels-last."""
    detector, recipe = params.detector, params.train
    config = DetectorConfig(
        head, classes, detector.channels, detector.convs, detector.levels, detector.groups,
        tuple(recipe.sizes), recipe.longest,
    )  # fmt: skip
    model = build_detector(structure, config, recipe.zero_residual)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def batch_order(images: int, batch: int, steps: int, seed: int) -> list[list[int]]:
    """Indices of every step: shuffled passes over the images, incomplete batches left out."""
    per_pass = images // batch
    order: list[list[int]] = []
    for number in range(math.ceil(steps / per_pass)):
        generator = torch.Generator().manual_seed(1_000_003 * seed + number)
        shuffled = torch.randperm(images, generator=generator).tolist()
        order += [shuffled[i * batch : (i + 1) * batch] for i in range(per_pass)]
    return order[:steps]


def flip(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """An image and its boxes mirrored left to right."""
    width, box_G4 = image.shape[-1], target["boxes"].clone()
    box_G4[:, [0, 2]] = width - box_G4[:, [2, 0]]
    return image.flip(-1), {"boxes": box_G4, "labels": target["labels"]}


def train_detector(
    model: nn.Module,
    images: Images,
    recipe: Train,
    length: int,
    seed: int,
    log: RunLog,
    checkpoint: Checkpoint,
    device: torch.device,
) -> None:
    """Train `model` in place for `length` steps or epochs."""
    batch = recipe.batch
    steps = length if recipe.unit == "steps" else length * (len(images) // batch)
    schedule = Schedule(recipe, steps)
    kind: Any = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.SGD
    extra = {} if recipe.optimizer == "adamw" else {"momentum": 0.9}
    optimizer = kind(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, **extra)
    model.train()
    rank, processes = process_share()
    if processes > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    saved = checkpoint.load()
    first = 0
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = int(saved["step"])
    network, saved_at = parallel(model, device), time.monotonic()
    order = [indices[rank::processes] for indices in batch_order(len(images), batch, steps, seed)[first:]]
    autocast = (
        torch.autocast(device.type, torch.bfloat16)
        if recipe.precision == "bfloat16"
        else contextlib.nullcontext()
    )
    for step, (pictures, targets) in enumerate(images.batches(order, recipe.workers), first):
        if time.monotonic() - saved_at >= CHECKPOINT_SECONDS:
            if is_main():
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                checkpoint.save(state)
            saved_at = time.monotonic()
        torch.manual_seed(1_000_003 * seed + step)  # the image size that torchvision's transform draws
        generator = torch.Generator().manual_seed(1_000_003 * (seed + 1) + step * processes + rank)
        flips = (torch.rand(len(pictures), generator=generator) < 0.5).tolist()
        pairs = [
            flip(*pair) if mirrored else pair
            for mirrored, pair in zip(flips, zip(pictures, targets, strict=True), strict=True)
        ]
        moved = [{name: value.to(device) for name, value in target.items()} for _, target in pairs]
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        with autocast:
            losses = network([picture.to(device) for picture, _ in pairs], moved)
            loss = sum(losses.values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()
        if step % LOG_STEPS == 0:
            log.metrics({name: float(value.detach()) for name, value in losses.items()}, step)
        tick()


@torch.no_grad()
def detect(model: nn.Module, images: Images, device: torch.device, workers: int) -> list[dict[str, Any]]:
    """What a detector finds in all images, as COCO's result files have it."""
    model.eval()
    order = [list(range(i, min(i + TEST_BATCH, len(images)))) for i in range(0, len(images), TEST_BATCH)]
    found: list[dict[str, Any]] = []
    for indices, (pictures, _) in zip(order, images.batches(order, workers), strict=True):
        for index, detection in zip(indices, model([p.to(device) for p in pictures]), strict=True):
            for item in coco_detections(images.image_id(index), detection):
                found.append(item | {"category_id": images.categories[item["category_id"]]})
    return found
