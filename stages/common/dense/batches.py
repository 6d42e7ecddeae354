"""Batches for training: which images, how changed, in which order depends on (seed, step) alone, so that a run resumes."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stages.common.dense.coco import Target
from stages.common.stage.device import process_share
from stages.common.stage.errors import ParameterError

Item = tuple[Tensor, Target]
Augmentation = Callable[[Tensor, Target], Item]  # draws from torch's generator
PRIME = 1_000_003  # keeps the seeds of runs, steps and images apart


def batch_order(images: int, batch: int, steps: int, seed: int) -> list[list[int]]:
    """Indices of every step: shuffled passes over the images, incomplete batches left out.

    Raises:
        ParameterError: there are fewer images than a batch has.
    """
    if images < batch:
        raise ParameterError(f"batch = {batch}: must not exceed the {images} training images")
    per_pass = images // batch
    order: list[list[int]] = []
    for number in range(math.ceil(steps / per_pass)):
        generator = torch.Generator().manual_seed(PRIME * seed + number)
        shuffled = torch.randperm(images, generator=generator).tolist()
        order += [shuffled[i * batch : (i + 1) * batch] for i in range(per_pass)]
    return order[:steps]


class _Drawn(Dataset[Item]):
    """Images by (index, seed of its augmentation)."""

    def __init__(self, images: Dataset[Item], augment: Augmentation) -> None:
        self.images, self.augment = images, augment

    def __getitem__(self, place: tuple[int, int]) -> Item:
        index, seed = place
        torch.manual_seed(seed)
        return self.augment(*self.images[index])


def as_lists(items: list[Item]) -> tuple[list[Tensor], list[Target]]:
    """Images and targets of a batch; sizes may differ."""
    return [image for image, _ in items], [target for _, target in items]


def training_batches(
    images: Dataset[Item], augment: Augmentation, batch: int, steps: int, seed: int, first: int, workers: int
) -> Iterator[tuple[list[Tensor], list[Target]]]:
    """The batches of the steps `first` .. `steps`; under torchrun every process gets its share of each."""
    rank, processes = process_share()
    order = batch_order(len(images), batch, steps, seed)  # type: ignore[arg-type]
    drawn = [
        [(index, PRIME * (PRIME * seed + step) + place) for place, index in enumerate(indices)][
            rank::processes
        ]
        for step, indices in enumerate(order[first:], first)
    ]
    loader = DataLoader(
        _Drawn(images, augment), batch_sampler=drawn, num_workers=workers, collate_fn=as_lists
    )
    yield from loader


def flip(image_CHW: Tensor, target: Target) -> Item:
    """Mirror an image and its boxes, masks and label map left to right, half the time."""
    if torch.rand(()) < 0.5:
        return image_CHW, target
    mirrored = {name: value.flip(-1) if value.ndim > 1 else value for name, value in target.items()}
    if "boxes" in target:
        mirrored["boxes"] = target["boxes"].clone()
        mirrored["boxes"][:, [0, 2]] = image_CHW.shape[-1] - target["boxes"][:, [2, 0]]
    return image_CHW.flip(-1), mirrored
