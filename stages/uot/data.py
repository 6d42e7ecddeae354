"""Source and target images of this paper, in memory or in folders.

Data flow: `prepare` writes `data/uot/<scale>/<seed>/` per seed. Generated data: `concepts.safetensors` with
`source_x [N, 144]`, `source_y [N]`, `source_group [C]` and the same for `target` (training), `test` and
`mixed` (claim 8: a heterogeneous target). Photographs stay in their folders; `folders.json` lists class
names, folders, and per target the training files that the seed's order puts first.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from stages.common.stage.device import process_share
from stages.common.stage.errors import InputError
from stages.uot.params import TargetName

Batch = tuple[Tensor, Tensor]
View = Literal["train", "strong", "test"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
STRONG_NOISE = 0.5  # of generated pixels in the strong view; their weak view is the image itself
EVALUATION_BATCH = 500


def index_batches(
    count: int, batch: int, seed: int, start: int, stop: int
) -> Iterator[tuple[int, list[int]]]:
    """Step and this process's sample indices, for the steps from `start` to `stop`.

    One endless sequence of epoch-wise shuffles, cut into batches: it depends on `seed` and the step alone, so
    that it resumes anywhere.
    """
    rank, world = process_share()
    for step in range(start, stop):
        chosen: list[int] = []
        position = step * batch
        while len(chosen) < batch:
            epoch, offset = divmod(position, count)
            order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
            part = order[offset : offset + batch - len(chosen)].tolist()
            chosen += part
            position += len(part)
        yield step, chosen[rank::world]


class ArrayImages:
    """Samples in memory: `x [N, ...]`, `y [N]`."""

    def __init__(self, x: Tensor, y: Tensor, device: torch.device) -> None:
        self.x, self.y, self.device = x.to(device), y.to(device), device

    def __len__(self) -> int:
        return len(self.y)

    @property
    def labels(self) -> Tensor:
        """`[N]` on the CPU."""
        return self.y.cpu()

    def subset(self, rows: Tensor) -> "ArrayImages":
        """The samples of these indices."""
        return ArrayImages(self.x[rows.to(self.device)], self.y[rows.to(self.device)], self.device)

    def stream(self, batch: int, seed: int, start: int, stop: int, view: View = "train") -> Iterator[Batch]:
        """Training batches of the steps from `start` to `stop`; views of one seed show the same samples."""
        for step, rows in index_batches(len(self), batch, seed, start, stop):
            x, y = self.x[rows], self.y[rows]
            if view == "strong":
                generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
                x = x + STRONG_NOISE * torch.randn(x.shape, generator=generator).to(self.device)
            yield x, y

    def once(self) -> Iterator[Batch]:
        """Every sample once, in order."""
        return zip(self.x.split(EVALUATION_BATCH), self.y.split(EVALUATION_BATCH), strict=True)


class FolderImages:
    """Image files, read by worker processes.

    `RandomResizedCrop(224)` and flip to train, `CenterCrop(224)` of 256 to test.
    """

    def __init__(self, files: Sequence[str], labels: Tensor, device: torch.device) -> None:
        self.files, self.labels, self.device = list(files), labels, device

    def __len__(self) -> int:
        return len(self.files)

    def subset(self, rows: Tensor) -> "FolderImages":
        """The files of these indices."""
        return FolderImages([self.files[row] for row in rows.tolist()], self.labels[rows], self.device)

    def stream(self, batch: int, seed: int, start: int, stop: int, view: View = "train") -> Iterator[Batch]:
        """Training batches of the steps from `start` to `stop`.

        Every image's augmentation has a seed of its own.
        """
        steps = [
            [(row, (seed * 1_000_003 + step) * batch + place) for place, row in enumerate(rows)]
            for step, rows in index_batches(len(self), batch, seed, start, stop)
        ]
        return self._load(view, batch_sampler=steps)

    def once(self) -> Iterator[Batch]:
        """Every image once, in order."""
        rows = [[(row, 0) for row in part.tolist()] for part in torch.arange(len(self)).split(100)]
        return self._load("test", batch_sampler=rows)

    def _load(self, view: View, batch_sampler: list[list[tuple[int, int]]]) -> Iterator[Batch]:
        loader: torch.utils.data.DataLoader[Batch] = torch.utils.data.DataLoader(
            _Reader(self.files, self.labels, view),
            batch_sampler=batch_sampler,
            num_workers=8 if self.device.type == "cuda" else 0,
            pin_memory=self.device.type == "cuda",
        )
        for x_BCHW, y_B in loader:
            yield (
                x_BCHW.to(self.device, non_blocking=True, memory_format=torch.channels_last),
                y_B.to(self.device, non_blocking=True),
            )


class _Reader(torch.utils.data.Dataset[Batch]):
    """One image by (index, seed of its augmentation)."""

    def __init__(self, files: list[str], labels: Tensor, view: View) -> None:
        from torchvision import transforms

        self.files, self.labels = files, labels
        pixels = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        crop = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
        chains = {
            "train": [*crop, *pixels],
            "strong": [*crop, transforms.RandAugment(2, 10), *pixels],
            "test": [transforms.Resize(256), transforms.CenterCrop(224), *pixels],
        }
        self.transform = transforms.Compose(chains[view])

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        from PIL import Image

        row, seed = key
        torch.manual_seed(seed)
        try:
            with Image.open(self.files[row]) as image:
                return self.transform(image.convert("RGB")), self.labels[row]
        except OSError as error:
            raise InputError(f"{self.files[row]}: not a readable image ({error})") from None


Images = ArrayImages | FolderImages


class PreparedData:
    """What `prepare` left for one seed.

    Images of the source and the targets, names and concept groups of the source classes.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.device = device
        self.arrays: dict[str, Tensor] = {}
        self.listing: dict[str, dict[str, object]] = {}
        if (folder / "concepts.safetensors").exists():
            self.arrays = load_file(folder / "concepts.safetensors")
            self.source_groups = [str(group) for group in self.arrays["source_group"].tolist()]
        else:
            self.listing = json.loads((folder / "folders.json").read_text())
            self.source_groups = list(self.listing["source"]["groups"])  # type: ignore[call-overload]

    def _images(self, name: str) -> Images:
        if self.arrays:
            return ArrayImages(self.arrays[f"{name}_x"], self.arrays[f"{name}_y"], self.device)
        entry = self.listing[name]
        return FolderImages(entry["files"], torch.tensor(entry["labels"]), self.device)  # type: ignore[arg-type]

    def source(self, chosen: Sequence[int] | None = None) -> Images:
        """Source images, all or those of the chosen classes, with their original class ids."""
        images = self._images("source")
        if chosen is None:
            return images
        return images.subset(torch.isin(images.labels, torch.tensor(chosen)).nonzero().flatten())

    def target(self, name: TargetName, fraction: float = 1.0) -> Images:
        """A target's training images.

        Of each class the first `fraction` in the seed's order, at least one.
        """
        images = self._images("target" if self.arrays else f"{name}/train")
        labels = images.labels
        rows = []
        for label in range(int(labels.max()) + 1):
            mine = (labels == label).nonzero().flatten()
            rows.append(mine[: max(1, round(fraction * len(mine)))])
        return images.subset(torch.cat(rows))

    def test(self, name: TargetName) -> Images:
        """A target's test images."""
        return self._images("test" if self.arrays else f"{name}/val")

    def mixed(self) -> Images:
        """The heterogeneous target of the generated data."""
        return self._images("mixed")

    def target_classes(self, name: TargetName) -> int:
        """How many classes a target has."""
        return int(self._images("target" if self.arrays else f"{name}/train").labels.max()) + 1

    def relevant_groups(self, name: TargetName) -> set[str]:
        """Concept groups of the source that a target is about; empty where nobody has named one."""
        if self.arrays:
            return {str(group) for group in self.arrays["target_group"].tolist()}
        return RELEVANT.get(name, set())


# the authors' concept groups of ImageNet's classes that selections are judged by (card, claim 2)
RELEVANT: dict[str, set[str]] = {
    "CUB": {"bird"},
    "dogs": {"dog"},
    "pets": {"dog"},
    "cars": {"vehicle"},
    "aircraft": {"vehicle"},
}
