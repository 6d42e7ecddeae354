"""What networks of this paper are trained and tested on.

Data flow: `prepare` writes `data/elsa/<scale>/<data>.safetensors` with `train_x [N, 3, H, W]` (float32, or uint8
for photographs), `train_y [N]`, `test_x`, `test_y`; ImageNet stays in its folder and `prepare` writes
`imagenet.json` with the folder's path.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from stages.common.augment import crop_flip
from stages.common.stage.device import process_share
from stages.common.stage.jobs import worker_count
from stages.elsa.params import DataName, Recipe

Batch = tuple[Tensor, Tensor]
CLASSES: dict[DataName, int] = {"textures": 10, "textures-turned": 10, "cifar10": 10, "imagenet": 1000}
SIZES: dict[DataName, int] = {"textures": 28, "textures-turned": 28, "cifar10": 32, "imagenet": 224}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet; near enough for CIFAR-10
TEST_RESIZE = 248  # floor(224 / .9): card, "Metrics"
EVALUATION_BATCH = 250


class ArrayData:
    """A data set that fits in memory."""

    def __init__(self, path: Path, recipe: Recipe, device: torch.device) -> None:
        self.tensors = {name: tensor.to(device) for name, tensor in load_file(path).items()}
        self.recipe, self.device = recipe, device

    def train(self, seed: int, start: int) -> Iterator[Batch]:
        """Endless training batches from step `start` on; what they are depends on `seed` and the step alone."""
        x_NCHW, y_N, size = self.tensors["train_x"], self.tensors["train_y"], self.recipe.batch
        rank, world = process_share()
        step, per_epoch = start, len(y_N) // size
        while True:
            epoch, index = divmod(step, per_epoch)
            order_N = _order(len(y_N), seed, epoch)
            for first in range(index * size, per_epoch * size, size):
                rows_B = order_N[first : first + size][rank::world].to(self.device)
                x_BCHW = _as_float(x_NCHW[rows_B])
                if self.recipe.augment == "crop-flip":
                    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) * world + rank)
                    x_BCHW = crop_flip(x_BCHW, generator)
                yield x_BCHW, y_N[rows_B]
                step += 1

    def test(self) -> Iterator[Batch]:
        """The test set in batches."""
        x, y = (self.tensors[name].split(EVALUATION_BATCH) for name in ("test_x", "test_y"))
        return ((_as_float(x_BCHW), y_B) for x_BCHW, y_B in zip(x, y, strict=True))


class _SeededImages(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Images of a folder by index, each augmented by a seed of its own, so that a resumed epoch is the same."""

    def __init__(self, images: torch.utils.data.Dataset[tuple[Tensor, int]], seed: int) -> None:
        self.images, self.seed = images, seed

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        import random

        torch.manual_seed(self.seed + index)  # of the worker process
        random.seed(self.seed + index)  # timm's augmentations draw from it
        return self.images[index]


class FolderData:
    """ImageNet in its folder, read by worker processes; under torchrun every process reads its share."""

    def __init__(self, path: Path, recipe: Recipe, device: torch.device) -> None:
        self.folder = Path(json.loads(path.read_text())["folder"])
        self.recipe, self.device = recipe, device

    def train(self, seed: int, start: int) -> Iterator[Batch]:
        """Endless training batches from step `start` on, augmented as the authors do (card, "Training recipes")."""
        from timm.data import create_transform
        from torchvision.datasets import ImageFolder

        transform = create_transform(
            SIZES["imagenet"],
            is_training=True,
            auto_augment="rand-m9-mstd0.5-inc1",
            re_prob=0.25,
            re_mode="pixel",
            interpolation="random",
        )
        images = ImageFolder(str(self.folder / "train"), transform)
        rank, world = process_share()
        per_epoch = len(images) // self.recipe.batch
        step = start
        while True:
            epoch, index = divmod(step, per_epoch)
            order = _order(len(images), seed, epoch)[: per_epoch * self.recipe.batch]
            mine = order.view(per_epoch, -1, world)[index:, :, rank].tolist()
            yield from self._load(_SeededImages(images, (seed * 1_000_003 + epoch) * len(images)), mine)
            step += per_epoch - index

    def test(self) -> Iterator[Batch]:
        """The validation set, centre crops."""
        from torchvision import datasets, transforms

        chain = [
            transforms.Resize(TEST_RESIZE, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(SIZES["imagenet"]),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
        images = datasets.ImageFolder(str(self.folder / "val"), transforms.Compose(chain))
        batches = [part.tolist() for part in torch.arange(len(images)).split(EVALUATION_BATCH)]
        return self._load(images, batches)

    def _load(
        self, images: torch.utils.data.Dataset[tuple[Tensor, int]], batches: list[list[int]]
    ) -> Iterator[Batch]:
        pinned = self.device.type == "cuda"
        loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
            images, batch_sampler=batches, num_workers=worker_count(), pin_memory=pinned
        )
        for x_BCHW, y_B in loader:
            yield x_BCHW.to(self.device, non_blocking=True), y_B.to(self.device, non_blocking=True)


def open_data(prepared: Path, recipe: Recipe, device: torch.device) -> ArrayData | FolderData:
    """The data set of a recipe as `prepare` left it in the folder `prepared`."""
    if recipe.data == "imagenet":
        return FolderData(prepared / "imagenet.json", recipe, device)
    return ArrayData(prepared / f"{recipe.data}.safetensors", recipe, device)


def _order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def _as_float(x: Tensor) -> Tensor:
    """Images as a network takes them: uint8 is scaled and normalised, float32 stays as it is."""
    if x.dtype != torch.uint8:
        return x
    mean, std = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (x.float() / 255 - mean) / std
