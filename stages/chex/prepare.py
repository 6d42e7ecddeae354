"""chex-prepare: make or read the data sets of the active scale.

Reads nothing (quick), CIFAR-10 from a mirror or its home (real), ImageNet's folder (paper).
Writes `data/chex/<scale>/`: one file per data set, laid out as `stages.chex.data` says.
"""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from stages.chex.data import CLASSES
from stages.chex.params import ChexParams, DataName
from stages.chex.shapes import make_shapes
from stages.common.datasets import fetch, in_mirror
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
            train, test = _cifar10()
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


def _cifar10() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """CIFAR-10, uint8 `[N, 3, 32, 32]`: the original binary files, or a mirror's JPEG copies."""
    if in_mirror("cifar10", "cifar10_train.parquet"):
        return _cifar10_jpeg("cifar10_train.parquet"), _cifar10_jpeg("cifar10_test.parquet")
    with tarfile.open(fetch("cifar10", "cifar-10-binary.tar.gz")) as archive:
        train = [_cifar10_records(archive, f"data_batch_{index}.bin") for index in range(1, 6)]
        test = _cifar10_records(archive, "test_batch.bin")
    return (torch.cat([x for x, _ in train]), torch.cat([y for _, y in train])), test


def _cifar10_records(archive: tarfile.TarFile, name: str) -> tuple[Tensor, Tensor]:
    member = archive.extractfile(f"cifar-10-batches-bin/{name}")
    if member is None:
        raise InputError(f"cifar-10-binary.tar.gz: has no {name}")
    records_N = torch.frombuffer(bytearray(member.read()), dtype=torch.uint8).view(-1, 1 + 3 * 32 * 32)
    return records_N[:, 1:].reshape(-1, 3, 32, 32).clone(), records_N[:, 0].long()


def _cifar10_jpeg(name: str) -> tuple[Tensor, Tensor]:
    import pyarrow.parquet
    from PIL import Image

    table = pyarrow.parquet.read_table(fetch("cifar10", name), columns=["label", "image_jpeg"])
    images = [np.asarray(Image.open(io.BytesIO(jpeg.as_py()))) for jpeg in table["image_jpeg"]]
    x_NHWC = torch.from_numpy(np.stack(images))
    return x_NHWC.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(table["label"].to_numpy()).long()


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
