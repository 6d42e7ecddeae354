"""chex-prepare: make or read the data sets of the active scale.

Reads nothing (quick), CIFAR-10 from a mirror or its home (real), ImageNet's folder (paper).
Writes `data/chex/<scale>/`: one file per data set, laid out as `stages.chex.data` says.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from stages.chex.data import CLASSES
from stages.chex.params import ChexParams, DataName
from stages.chex.shapes import make_shapes
from stages.common.cifar10 import read_cifar10
from stages.common.stage.errors import InputError, ParameterError
from stages.common.stage.files import output_dir
from stages.common.stage.params import load_params
from stages.common.stage.run import run, seed_everything

SHAPES_TRAIN, SHAPES_TEST = 1600, 1500
DIGITS_TEST = 597  # a third of the 1,797 digits


def main() -> None:
    """Prepare every data set that the parameters name."""
    params = load_params(ChexParams, "chex")
    seed_everything(0)
    with output_dir(Path("data/chex") / params.scale) as folder:
        for name in params.data:
            if name == "imagenet":
                (folder / "imagenet.json").write_text(json.dumps(describe_imagenet(params.image_folder)))
            else:
                save_file(_arrays(name), folder / f"{name}.safetensors")


def _arrays(name: DataName) -> dict[str, Tensor]:
    match name:
        case "shapes":
            generator = torch.Generator().manual_seed(0)
            train = make_shapes(SHAPES_TRAIN, generator)
            test = make_shapes(SHAPES_TEST, generator)
        case "digits":
            train, test = _digits()
        case _:
            return read_cifar10()
    return {"train_x": train[0], "train_y": train[1], "test_x": test[0], "test_y": test[1]}


def _digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """scikit-learn's handwritten digits, 8 x 8, in a fixed shuffled order: 1,200 to train, 597 to test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x_N1HW = torch.from_numpy(digits.images).float()[:, None] / 8 - 1
    y_N = torch.from_numpy(digits.target).long()
    order_N = torch.randperm(len(y_N), generator=torch.Generator().manual_seed(0))
    train_N, test_N = order_N[DIGITS_TEST:], order_N[:DIGITS_TEST]
    return (x_N1HW[train_N], y_N[train_N]), (x_N1HW[test_N], y_N[test_N])


def describe_imagenet(folder: str | None) -> dict[str, object]:
    """Check that `folder` is laid out like ImageNet and say what is in it.

    Raises:
        ParameterError: no folder is given.
        InputError: the folder has no `train` or `val`, or they have other classes than 1,000.
    """
    if folder is None:
        raise ParameterError("chex.image_folder: missing; give ImageNet's folder (with train/ and val/)")
    root = Path(folder).resolve()
    for split in ("train", "val"):
        classes = sorted(path.name for path in (root / split).glob("*") if path.is_dir())
        if len(classes) != CLASSES["imagenet"]:
            raise InputError(f"{root / split}: has {len(classes)} class folders, 1000 are expected")
    return {"folder": str(root), "classes": classes}


if __name__ == "__main__":
    run(main)
