"""Rows of the tables of detectors, and how their networks are trained."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from stages.chex.detection.cells import open_images
from stages.chex.detection.networks import SSD_SPECS
from stages.chex.detection.params import Detector, DetectorName, MethodName
from stages.chex.rows import Row, Schedule
from stages.chex.sub_training import Loss, Task
from stages.common.dense.batches import PRIME, Augmentation, Item, flip, training_batches
from stages.common.dense.coco import Target
from stages.common.dense.training import allow_fast_kernels, learning_rate, optimizer_of

METHODS: dict[MethodName, Row] = {
    "uniform": Row("before training", "l1", "uniform"),
    "l1": Row("after training", "l1", "uniform"),
    "chex": Row("while training"),
    "chex-no-regrow": Row("while training", regrow="none"),
    "chex-uniform-random": Row("while training", allocation="uniform", regrow="random"),
}


class SSDAugmentation:
    """SSD's: colours, a random crop that keeps an overlap with the objects, flip, the square that the detector takes."""

    def __init__(self, size: int) -> None:
        self.change = v2.Compose(
            [v2.RandomPhotometricDistort(), v2.RandomIoUCrop(), v2.RandomHorizontalFlip(), v2.Resize((size, size)),
             v2.SanitizeBoundingBoxes()]
        )  # fmt: skip

    def __call__(self, image_CHW: Tensor, target: Target) -> Item:
        """Augment one image; objects that a crop leaves nothing of go away."""
        sides = (image_CHW.shape[-2], image_CHW.shape[-1])
        boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=sides)
        image, changed = self.change(tv_tensors.Image(image_CHW), {**target, "boxes": boxes})
        return image.as_subclass(Tensor), {name: value.as_subclass(Tensor) for name, value in changed.items()}


def task_of(
    detector: DetectorName, settings: Detector, prepared: Path, schedule: Schedule, seed: int, device: torch.device
) -> Task:  # fmt: skip
    """Training on the prepared images."""
    allow_fast_kernels(device)
    peak = settings.finetune_lr if schedule.finetune else settings.recipe.lr
    recipe = settings.recipe.model_copy(update={"lr": peak, "steps": schedule.steps})
    images = open_images(prepared, "train", detector)
    augment: Augmentation = (
        flip if settings.augment == "flip" else SSDAugmentation(SSD_SPECS[settings.net].size)
    )

    def losses(start: int) -> Iterator[Loss]:
        batches = training_batches(images, augment, recipe.batch, recipe.steps, seed, start, recipe.workers)
        for step, (pictures, targets) in enumerate(batches, start):
            torch.manual_seed(PRIME * seed + step)  # of proposals that are sampled
            on_device = [picture.to(device) for picture in pictures]
            moved = [{name: value.to(device) for name, value in target.items()} for target in targets]

            def loss(
                network: nn.Module, pictures: list[Tensor] = on_device, targets: list[Target] = moved
            ) -> Tensor:
                return torch.stack(list(network(pictures, targets).values())).sum()

            yield loss

    return Task(
        optimizer=lambda network: optimizer_of(network, recipe),
        lr=lambda step: learning_rate(step, recipe) / recipe.lr,
        losses=losses,
        clip=recipe.clip,
        bfloat16=recipe.precision == "bfloat16",
    )
