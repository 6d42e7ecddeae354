"""What networks of this paper are trained and tested on.

Data flow: `prepare` writes `<name>.safetensors` with `train_x [N, C, H, W]` (float32, or uint8 for
photographs), `train_y [N]`, `test_x`, `test_y`; ImageNet stays in its folder and `prepare` writes
`imagenet.json` with the folder's path and counts.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from stages.chex.params import DataName, Recipe
from stages.common.augment import crop_flip
from stages.common.stage.device import process_share
from stages.common.stage.jobs import worker_count

Batch = tuple[Tensor, Tensor]
CLASSES: dict[DataName, int] = {"shapes": 8, "digits": 10, "cifar10": 10, "imagenet": 1000}
SHAPES: dict[DataName, tuple[int, int, int]] = {
    "shapes": (3, 12, 12),
    "digits": (1, 8, 8),
    "cifar10": (3, 32, 32),
    "imagenet": (3, 224, 224),
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet; near enough for CIFAR-10
EVALUATION_BATCH = 500


class ArrayData:
    """A data set that fits in memory."""

    def __init__(self, path: Path, classes: int, recipe: Recipe, device: torch.device) -> None:
        tensors = {name: tensor.to(device) for name, tensor in load_file(path).items()}
        self.train_x, self.train_y = tensors["train_x"], tensors["train_y"]
        self.test_x, self.test_y = tensors["test_x"], tensors["test_y"]
        self.classes, self.recipe, self.device = classes, recipe, device

    def train(self, seed: int, start: int) -> Iterator[Batch]:
        """Endless training batches from step `start` on; the order depends on `seed` and the step alone."""
        rank, world = process_share()
        size = self.recipe.batch
        per_epoch = len(self.train_x) // size
        step = start
        while True:
            epoch, index = divmod(step, per_epoch)
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            order_N = torch.randperm(len(self.train_x), generator=generator)
            for first in range(index * size, per_epoch * size, size):
                rows_B = order_N[first : first + size][rank::world].to(self.device)
                x_BCHW = as_float(self.train_x[rows_B])
                if self.recipe.augment == "crop-flip":
                    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) * world + rank)
                    x_BCHW = crop_flip(x_BCHW, generator)
                yield x_BCHW, self.train_y[rows_B]
                step += 1

    def test(self) -> Iterator[Batch]:
        """The test set in batches."""
        for first in range(0, len(self.test_x), EVALUATION_BATCH):
            rows = slice(first, first + EVALUATION_BATCH)
            yield as_float(self.test_x[rows]), self.test_y[rows]


def as_float(x: Tensor) -> Tensor:
    """Images as a network takes them: uint8 is scaled and normalised, float32 stays as it is."""
    if x.dtype != torch.uint8:
        return x
    mean, std = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (x.float() / 255 - mean) / std


class _SeededImages(torch.utils.data.Dataset[Any]):
    """Some images of a folder, each cropped and flipped by a seed of its own, so that a resumed epoch is the same."""

    def __init__(self, images: torch.utils.data.Dataset[Any], order: list[int], seed: int) -> None:
        self.images, self.order, self.seed = images, order, seed

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        torch.manual_seed(self.seed + self.order[place])  # of the worker process
        return self.images[self.order[place]]


class FolderData:
    """ImageNet in its folder, read by worker processes; under torchrun every process reads its share."""

    def __init__(self, path: Path, classes: int, recipe: Recipe, device: torch.device) -> None:
        self.folder = Path(json.loads(path.read_text())["folder"])
        self.classes, self.recipe, self.device = classes, recipe, device

    def train(self, seed: int, start: int) -> Iterator[Batch]:
        """Endless training batches from step `start` on: RandomResizedCrop(224) and flip."""
        from torchvision import datasets, transforms

        crop = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
        images = datasets.ImageFolder(
            str(self.folder / "train"),
            transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(MEAN, STD)]),
        )
        rank, world = process_share()
        per_epoch = len(images) // self.recipe.batch
        size = self.recipe.batch // world
        step = start
        while True:
            epoch, index = divmod(step, per_epoch)
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            order = torch.randperm(len(images), generator=generator)
            mine = order[: per_epoch * self.recipe.batch].view(per_epoch, world, size)[index:, rank].flatten()
            loader = torch.utils.data.DataLoader(
                _SeededImages(images, mine.tolist(), (seed * 1_000_003 + epoch) * len(images)),
                size,
                num_workers=min(8, worker_count()),
                pin_memory=self.device.type == "cuda",
            )
            yield from self._on_device(loader)
            step += per_epoch - index

    def test(self) -> Iterator[Batch]:
        """The validation set: resize to 256, centre crop 224."""
        from torchvision import datasets, transforms

        crop = [transforms.Resize(256), transforms.CenterCrop(224)]
        images = datasets.ImageFolder(
            str(self.folder / "val"),
            transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(MEAN, STD)]),
        )
        return self._on_device(
            torch.utils.data.DataLoader(images, EVALUATION_BATCH, num_workers=min(8, worker_count()))
        )

    def _on_device(self, batches: "torch.utils.data.DataLoader[Batch]") -> Iterator[Batch]:
        for x_BCHW, y_B in batches:
            yield x_BCHW.to(self.device, non_blocking=True), y_B.to(self.device, non_blocking=True)


def open_data(prepared: Path, name: DataName, recipe: Recipe, device: torch.device) -> ArrayData | FolderData:
    """The data set `name` as `prepare` left it in the folder `prepared`."""
    if name == "imagenet":
        return FolderData(prepared / "imagenet.json", CLASSES[name], recipe, device)
    return ArrayData(prepared / f"{name}.safetensors", CLASSES[name], recipe, device)


@torch.no_grad()
def accuracy(
    predict: Callable[[Tensor], Tensor], data: ArrayData | FolderData, batches: int | None = None
) -> float:
    """Top-1 in percent, on the whole test set or on its first `batches` batches."""
    right = total = 0
    for x_BCHW, y_B in itertools.islice(data.test(), batches):
        right += int((predict(x_BCHW).argmax(1) == y_B).sum())
        total += len(y_B)
    return 100 * right / total
