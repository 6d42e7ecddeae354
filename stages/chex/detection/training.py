"""CHEX on detectors: rows of tables T2 and T3, their networks, and how these are trained and tested."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from stages.chex.detection.networks import BODY, SSD_SPECS, body_example, detector
from stages.chex.detection.params import DetectionParams, Detector, DetectorName, MethodName
from stages.chex.detection.ssd import SSD
from stages.chex.loop import Loss, Task
from stages.chex.method.flops import count_macs
from stages.chex.rows import Row, Schedule
from stages.chex.study import Job, Numbers, PartSettings, Study
from stages.common.dense.average_precision import Kind, average_precision
from stages.common.dense.batches import PRIME, Augmentation, Item, flip, training_batches
from stages.common.dense.coco import CocoImages, Target, open_coco
from stages.common.dense.inference import detect
from stages.common.dense.splits import Split
from stages.common.dense.training import allow_fast_kernels, learning_rate, optimizer_of
from stages.common.stage.params import load_params

TABLES: dict[DetectorName, str] = {"ssd": "T2", "mask-rcnn": "T3"}
KINDS: dict[DetectorName, tuple[Kind, ...]] = {"ssd": ("bbox",), "mask-rcnn": ("bbox", "segm")}
METHODS: dict[MethodName, Row] = {
    "uniform": Row("before training", "l1", "uniform"),
    "l1": Row("after training", "l1", "uniform"),
    "chex": Row("while training"),
    "chex-no-regrow": Row("while training", regrow="none"),
    "chex-uniform-random": Row("while training", allocation="uniform", regrow="random"),
}


class DetectorStudy(Study[DetectorName]):
    """Detection; its parts are detectors, of which the body is pruned."""

    name, rows = "chex-detection", METHODS

    def __init__(self) -> None:
        params = self.params = load_params(DetectionParams, self.name)
        parts = {
            name: PartSettings(
                steps=settings.recipe.steps,
                prune=settings.prune,
                settings={
                    **params.data.model_dump(),
                    **settings.recipe.model_dump(),
                    **settings.prune.model_dump(),
                    **settings.model_dump(exclude={"recipe", "prune"}),
                },
                table=TABLES[name],
                data=params.data.kind,
                path=BODY[name],
            )
            for name, settings in params.detectors.items()
        }
        super().__init__(params, params.scale, params.seeds, params.methods, parts)

    def network(self, part: DetectorName, seed: int) -> nn.Module:
        """The untrained detector of a seed."""
        return detector(part, self.params.detectors[part].net, self.params.classes, seed)

    def example(self, part: DetectorName, batch: int = 1) -> Tensor:
        """An input of the body, zeros."""
        return body_example(part, self.params.detectors[part].net, batch)

    def task(self, part: DetectorName, schedule: Schedule, seed: int, device: torch.device) -> Task:
        """Training on the prepared images."""
        images = open_images(self.prepared, "train", part)
        return task_of(self.params.detectors[part], images, schedule, seed, device)

    def outputs(self, part: DetectorName, network: nn.Module, device: torch.device) -> list[Tensor]:
        """Maps of the first test image."""
        picture, _ = open_images(self.prepared, "val", part)[0]
        return maps_of(network, picture.to(device))

    def quality(self, job: Job[DetectorName], network: nn.Module, device: torch.device) -> Numbers:
        """Average precision, as COCO defines it; of an SSD also what body, extra blocks and heads cost."""
        numbers: Numbers = {}
        if job.part == "ssd":  # Mask R-CNN's heads cost what there is to see
            whole = count_macs(network.get_submodule("net"), self.example(job.part).to(device))
            numbers["whole_macs"] = (whole, "MACs")
        images = open_images(self.prepared, "val", job.part)
        workers = self.params.detectors[job.part].recipe.workers
        truth, found = images.ground_truth(), detect(network, images, device, workers)
        for kind in KINDS[job.part]:
            for name, value in average_precision(truth, found, kind).items():
                if not math.isnan(value):  # of a size that no object has
                    numbers[f"{kind}_{name}"] = (value, "%")
        return numbers


def open_images(prepared: Path, split: Split, detector: DetectorName) -> CocoImages:
    """The prepared images with the targets that a detector learns from."""
    return open_coco(prepared, split, first_label=1, masks=detector == "mask-rcnn")


def maps_of(model: nn.Module, picture_3HW: Tensor) -> list[Tensor]:
    """What heads and decoding see of an image: SSD's offsets and logits, Mask R-CNN's feature pyramid."""
    if isinstance(model, SSD):
        return list(model.predict([picture_3HW]))
    images, _ = model.get_submodule("transform")([picture_3HW])
    return list(model.get_submodule("backbone")(images.tensors).values())


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
    settings: Detector, images: CocoImages, schedule: Schedule, seed: int, device: torch.device
) -> Task:
    """Training on images: the recipe of `stages.common.dense`."""
    allow_fast_kernels(device)
    peak = settings.finetune_lr if schedule.finetune else settings.recipe.lr
    recipe = settings.recipe.model_copy(update={"lr": peak, "steps": schedule.steps})
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
