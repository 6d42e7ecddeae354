"""elsa-prepare: make or read the data sets of the active scale.

Reads nothing (quick), CIFAR-10 from a mirror or its home (real), ImageNet's folder (paper).
Writes `data/elsa/<scale>/`: one file per data set, laid out as `stages.elsa.data` says.
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from stages.common.cifar10 import read_cifar10
from stages.common.stage.errors import InputError, ParameterError
from stages.common.stage.files import output_dir
from stages.common.stage.params import load_params
from stages.common.stage.run import run, seed_everything
from stages.elsa.data import CLASSES
from stages.elsa.params import ElsaParams
from stages.elsa.textures import make_textures

TEST = 1000
# training images and turn (radians) of the generated sets; the second one is small, as what one fine-tunes on is
TEXTURES = {"textures": (2500, 0.0), "textures-turned": (500, math.pi / 8)}


def main() -> None:
    """Prepare every data set that the parameters name."""
    params = load_params(ElsaParams, "elsa")
    seed_everything(0)
    recipes = [params.pretrain, *([params.finetune] if params.finetune else [])]
    with output_dir(Path("data/elsa") / params.scale) as folder:
        for name in dict.fromkeys(recipe.data for recipe in recipes):
            if name == "imagenet":
                (folder / "imagenet.json").write_text(json.dumps(describe_imagenet(params.image_folder)))
            elif name == "cifar10":
                save_file(read_cifar10(), folder / "cifar10.safetensors")
            else:
                save_file(textures(*TEXTURES[name]), folder / f"{name}.safetensors")


def textures(train: int, turn: float) -> dict[str, Tensor]:
    """Training and test images of one generated set."""
    generator = torch.Generator().manual_seed(0)
    train_x, train_y = make_textures(train, turn, generator)
    test_x, test_y = make_textures(TEST, turn, generator)
    return {"train_x": train_x, "train_y": train_y, "test_x": test_x, "test_y": test_y}


def describe_imagenet(folder: str | None) -> dict[str, object]:
    """Check that `folder` is laid out like ImageNet and say where it is.

    Raises:
        ParameterError: no folder is given.
        InputError: the folder has no `train` or `val`, or they have other classes than 1,000.
    """
    if folder is None:
        raise ParameterError("elsa.image_folder: missing; give ImageNet's folder (with train/ and val/)")
    root = Path(folder).resolve()
    for split in ("train", "val"):
        classes = sum(path.is_dir() for path in (root / split).glob("*"))
        if classes != CLASSES["imagenet"]:
            raise InputError(f"{root / split}: has {classes} class folders, 1000 are expected")
    return {"folder": str(root)}


if __name__ == "__main__":
    run(main)
