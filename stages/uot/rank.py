"""Rank the classes of your own source folder for your own target folder.

`python -m stages.uot.rank SOURCE TARGET`.

Both are class folders, `<folder>/<class>/<image>`. Prints the best classes with their mass in the transport
plan, the target class that is nearest, and the distance to it (1 - cosine similarity of class means); `--csv
FILE` writes the whole list. Features come from a checkpoint: torchvision's ResNet-18 or ResNet-50, or MoCo-v2
(with its projection head, as in the paper).
"""

import argparse
import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.common.stage.device import start_device
from stages.common.stage.errors import InputError, ParameterError
from stages.common.stage.files import write_atomic
from stages.common.stage.progress import progress
from stages.common.stage.run import run, seed_everything
from stages.uot.data import FolderImages
from stages.uot.folders import list_images
from stages.uot.method.backbones import build_backbone, features, projection_from
from stages.uot.method.class_means import class_means
from stages.uot.method.selection import SELECTION_METHODS, rank_classes
from stages.uot.method.transport import class_cost
from stages.uot.official import load_start

COLUMNS = ("rank", "class", "score", "nearest target class", "distance", "images")
SPLITS = {"train", "val", "valid", "validation", "test"}


def main() -> None:
    """Rank, print, and write if asked to."""
    arguments = read_arguments()
    seed_everything(0)
    folders = {"source": arguments.source, "target": arguments.target}
    listed = {side: classes_of(folder) for side, folder in folders.items()}
    state = load_start(arguments.weights, arguments.net)
    device = start_device()
    backbone = build_backbone(arguments.net)
    backbone.load_state_dict(
        {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    )
    backbone, projection = backbone.to(device).eval(), projection_from(state)
    if projection is not None:
        projection = projection.to(device).eval()
    means = {}
    for side, (classes, files, labels) in listed.items():
        images = FolderImages(files, torch.tensor(labels), device)
        means[side] = folder_means(side, images, len(classes), backbone, projection)
    rows = rank_rows(arguments.method, means["source"], means["target"], listed)
    if arguments.csv:
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
        write_atomic(arguments.csv, table.getvalue())
    shown = [COLUMNS, *rows[: arguments.k]]
    widths = [max(len(row[column]) for row in shown) for column in range(len(COLUMNS))]
    for row in shown:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def read_arguments() -> argparse.Namespace:
    """Command-line arguments; a wrong one is told in one line.

    Raises:
        ParameterError: unknown, missing or out of range.
    """

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> "None":  # type: ignore[override]
            raise ParameterError(f"{self.prog}: {message}")

    parser = Parser(prog="python -m stages.uot.rank", description="Rank source classes for a target.")
    parser.add_argument("source", type=Path, help="folder of class folders to select from")
    parser.add_argument("target", type=Path, help="folder of class folders to fine-tune on")
    parser.add_argument(
        "--weights", type=Path, required=True, help="pre-trained checkpoint (torchvision or MoCo-v2)"
    )
    parser.add_argument("--net", choices=["resnet18", "resnet50"], default="resnet18")
    methods = [method for method in SELECTION_METHODS if method not in ("all", "random")]
    parser.add_argument("--method", choices=methods, default="uot")
    parser.add_argument("--k", type=int, default=100, help="how many classes to print")
    parser.add_argument("--csv", type=Path, help="file for the whole list")
    arguments = parser.parse_args()
    if arguments.k < 1:
        parser.error(f"--k = {arguments.k}: must be at least 1")
    return arguments


def classes_of(folder: Path) -> tuple[list[str], list[str], list[int]]:
    """Class names, files and labels of a folder of class folders.

    Raises:
        InputError: it is not one, or its classes are the splits of a data set.
    """
    classes, files, labels = list_images(folder)
    if set(classes) <= SPLITS:
        raise InputError(
            f"{folder}: holds the splits {', '.join(classes)}, not classes; give {folder / classes[0]}"
        )
    return classes, files, labels


def folder_means(
    side: str, images: FolderImages, classes: int, backbone: nn.Module, projection: nn.Module | None
) -> Tensor:
    """Class means `[classes, features]`, with a progress bar."""

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        with progress(f"features of the {side}", len(images)) as bar:
            for x, y in images.once():
                yield features(backbone, x, projection), y
                bar.advance(len(y))

    return class_means(batches(), classes).mean


def rank_rows(
    method: str, source: Tensor, target: Tensor, listed: dict[str, tuple[list[str], list[str], list[int]]]
) -> list[tuple[str, ...]]:
    """The ranked list as text, columns as in `COLUMNS`.

    The score of `uot` is the class's mass in the plan.
    """
    ranking = rank_classes(method, source, target)  # type: ignore[arg-type]
    distance_ST = class_cost(source, target, scale=1.0)
    near_S = distance_ST.argmin(1)
    classes, _, labels = listed["source"]
    count = torch.tensor(labels).bincount(minlength=len(classes))
    return [
        (
            str(place),
            classes[index],
            f"{math.exp(score) if method == 'uot' else score:.6g}",
            listed["target"][0][int(near_S[index])],
            f"{float(distance_ST[index].min()):.4f}",
            str(int(count[index])),
        )
        for place, (index, score) in enumerate(zip(ranking.order, ranking.score, strict=True), 1)
    ]


if __name__ == "__main__":
    run(main)
