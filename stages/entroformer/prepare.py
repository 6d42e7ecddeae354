"""entroformer-prepare: generate the quick scale's pictures, or read photographs.

Reads nothing (quick), or BSDS500 (400 pictures to train) and Kodak (24 to test) of the data set `images`. Writes
`data/entroformer/<scale>/train.safetensors` and `test.safetensors` as `stages.entroformer.data` says.

BSDS500 are JPEG files: each is shrunk by 0.6 to 0.9, so that models do not learn the 8x8 grid of its blocks.
"""

import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from stages.common.datasets import fetch
from stages.common.stage.errors import InputError
from stages.common.stage.files import output_dir, sha256
from stages.common.stage.params import load_params
from stages.common.stage.run import run, seed_everything
from stages.entroformer.dead_leaves import dead_leaves
from stages.entroformer.images import read_picture
from stages.entroformer.params import Data, EntroformerParams

TRAIN_SIDE, PICTURE_SIZE = 96, (176, 208)  # of generated pictures; MS-SSIM needs more than 160 a side
SHRINK = (0.6, 0.9)
SEED = 0


def main() -> None:
    """Prepare training and test pictures, the same for every seed."""
    params = load_params(EntroformerParams, "entroformer")
    seed_everything(SEED)
    train, test = (generated if params.data.source == "dead-leaves" else photographs)(params.data)
    with output_dir(Path("data/entroformer") / params.scale) as folder:
        save_file(train, folder / "train.safetensors")
        save_file(test, folder / "test.safetensors")


def generated(data: Data) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Dead leaves to train and to test on."""
    generator = np.random.default_rng(SEED)
    train = dead_leaves(data.train, TRAIN_SIDE, TRAIN_SIDE, generator)
    test = {"crops": dead_leaves(data.test_crops, data.crop, data.crop, generator)}
    for number, picture in enumerate(dead_leaves(data.test_pictures, *PICTURE_SIZE, generator)):
        test[f"picture/leaves{number:02d}"] = picture.clone()
    return {f"{number:05d}": picture.clone() for number, picture in enumerate(train)}, test


def photographs(data: Data) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """BSDS500's train and test pictures, shrunk, to train on; Kodak, as it is, to test on.

    Raises:
        InputError: no mirror has the files, or their bytes are not those of the manifest.
    """
    manifest = fetch("images", "MANIFEST.csv")
    files = {row["path"]: row["sha256"] for row in csv.DictReader(manifest.read_text().splitlines())}
    generator = np.random.default_rng(SEED)

    def read(name: str) -> Tensor:
        path = manifest.parent / name
        if not path.is_file() or sha256(path) != files[name]:
            raise InputError(f"{path}: missing, or its sha256 is not the one in {manifest.name}")
        return torch.from_numpy(read_picture(path).rgb).permute(2, 0, 1)

    def shrunk(picture: Tensor) -> Tensor:
        image = Image.fromarray(picture.permute(1, 2, 0).numpy())
        factor = generator.uniform(*SHRINK)
        size = round(factor * image.width), round(factor * image.height)
        return torch.from_numpy(np.array(image.resize(size, Image.Resampling.LANCZOS))).permute(2, 0, 1)

    names = sorted(name for name in files if name.startswith(("bsds500/train/", "bsds500/test/")))[
        : data.train
    ]
    train = {Path(name).stem: shrunk(read(name)).contiguous() for name in names}
    kodak = {Path(n).stem: read(n).contiguous() for n in sorted(files) if n.startswith("kodak/")}
    test = {f"picture/{name}": kodak[name] for name in list(kodak)[: data.test_pictures]}
    crops = []
    for number in range(data.test_crops):
        picture = list(kodak.values())[number % len(kodak)]
        row, column = (int(generator.integers(0, size - data.crop + 1)) for size in picture.shape[1:])
        crops.append(picture[:, row : row + data.crop, column : column + data.crop])
    return train, test | {"crops": torch.stack(crops)}


if __name__ == "__main__":
    run(main)
