"""transfgu-prepare: generate PartScenes, unpack CamVid, or list a data set's folders.

Reads nothing (quick), the data set `segmentation` of data/registry.yaml, or `data.root`. Writes
`data/transfgu/<scale>/<seed>/` as `stages.transfgu.data` says.
"""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
from safetensors.torch import save_file
from torch import Tensor

from stages.common.datasets import fetch
from stages.common.stage.errors import InputError
from stages.common.stage.files import output_dir
from stages.common.stage.params import load_params
from stages.common.stage.run import run, seed_everything
from stages.transfgu.data import label_table
from stages.transfgu.params import Data, TransfguParams
from stages.transfgu.scenes import scenes, single_objects

PRETRAIN_SIZE = 32  # of generated single objects
# image folder, label folder, what to put in place of the image's suffix, by split ("train", "val")
LAYOUTS = {
    "coco": ("MSCOCO/images/{}2017", "MSCOCO/annotations/{}2017", ".jpg", ".png"),
    "cityscapes": (
        "Cityscapes/leftImg8bit/{}",
        "Cityscapes/gtFine/{}",
        "_leftImg8bit.png",
        "_gtFine_labelIds.png",
    ),
    "voc": ("PascalVOC/JPEGImages", "PascalVOC/SegmentationClass", ".jpg", ".png"),
    "lip": ("LIP/{}_images", "LIP/{}_segmentations", ".jpg", ".png"),
}


def main() -> None:
    """Prepare the data of every seed."""
    params = load_params(TransfguParams, "transfgu")
    seed_everything(0)
    data = params.data
    photographs = camvid(data) if data.name == "camvid" else {}  # the same for every seed
    with output_dir(Path("data/transfgu") / params.scale) as folder:
        for seed in params.seeds:
            with output_dir(folder / str(seed)) as output:
                if data.name == "partscenes":
                    save_file(generated(data, seed), output / "images.safetensors")
                elif data.name == "camvid":
                    save_file(photographs, output / "images.safetensors")
                else:
                    (output / "folders.json").write_text(json.dumps(folders(data)))


def generated(data: Data, seed: int) -> dict[str, Tensor]:
    """PartScenes of one seed."""
    generator = torch.Generator().manual_seed(seed)
    train, _ = scenes(data.train, data.height, generator)
    test, label = scenes(data.test, data.height, generator)
    pretrain, _ = single_objects(data.pretrain, PRETRAIN_SIZE, generator)
    return {"train": train, "test": test, "label": label, "pretrain": pretrain}


def camvid(data: Data) -> dict[str, Tensor]:
    """CamVid: train and val images to train on, at twice the size (windows are cut from it); test images with labels.

    Raises:
        InputError: the mirror has no such file, or a label is not a class.
    """
    train = [_camvid_rows(split, (2 * data.width, 2 * data.height))[0] for split in ("train", "val")]
    test, label = _camvid_rows("test", (data.width, data.height))
    count_train, count_test = data.train or None, data.test or None
    return {
        "train": torch.cat(train)[:count_train],
        "test": test[:count_test].contiguous(),
        "label": label[:count_test].contiguous(),
    }


def _camvid_rows(split: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    from PIL import Image

    path = fetch("segmentation", f"camvid_{split}.parquet")
    table = pyarrow.parquet.read_table(path, columns=["image_webp", "label_png"])
    values = label_table("camvid", None).numpy()
    images, labels = [], []
    for image, label in zip(table["image_webp"], table["label_png"], strict=True):
        with Image.open(io.BytesIO(image.as_py())) as file:
            pixels = np.asarray(file.convert("RGB").resize(size, Image.Resampling.BILINEAR))
        with Image.open(io.BytesIO(label.as_py())) as file:
            classes = np.asarray(file.resize(size, Image.Resampling.NEAREST))
        images.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
        labels.append(torch.from_numpy(values[classes]))
    return torch.stack(images), torch.stack(labels)


def folders(data: Data) -> dict[str, list[str]]:
    """Training files, test files and their label files, sorted.

    Raises:
        InputError: a folder or a file is missing.
    """
    assert data.root is not None
    root = Path(data.root).resolve()
    kind = "coco" if data.name.startswith("coco") else "lip" if data.name.startswith("lip") else data.name
    image_folder, label_folder, image_end, label_end = LAYOUTS[kind]
    listing: dict[str, list[str]] = {}
    for split in ("train", "val"):
        folder = root / image_folder.format(split)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
        files = sorted(folder.rglob(f"*{image_end}"))
        if kind == "voc":  # all images lie in one folder; a list says which belong to a split
            names = root / "PascalVOC" / "ImageSets" / "Segmentation" / f"{split}.txt"
            if not names.is_file():
                raise InputError(f"{names}: no such file")
            files = [folder / f"{name}{image_end}" for name in names.read_text().split()]
        files = files[: (data.train if split == "train" else data.test) or None]
        if not files:
            raise InputError(f"{folder}: has no images (*{image_end})")
        labels = [
            root
            / label_folder.format(split)
            / f"{str(file.relative_to(folder)).removesuffix(image_end)}{label_end}"
            for file in files
        ]
        if split == "train":
            listing["train"] = [str(file) for file in files]
            continue
        missing = next((path for path in [*files, *labels] if not path.is_file()), None)
        if missing is not None:
            raise InputError(f"{missing}: no such file")
        listing["test"], listing["label"] = [str(f) for f in files], [str(path) for path in labels]
    return listing


if __name__ == "__main__":
    run(main)
