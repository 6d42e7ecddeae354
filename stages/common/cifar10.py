"""CIFAR-10 as tensors: the original binary files, or a mirror's JPEG copies."""

import io
import tarfile

import numpy as np
import torch
from torch import Tensor

from stages.common.datasets import fetch, in_mirror
from stages.common.stage.errors import InputError


def read_cifar10() -> dict[str, Tensor]:
    """`train_x` and `test_x`, uint8 `[N, 3, 32, 32]`; `train_y` and `test_y`, int64 `[N]`.

    Raises:
        InputError: no source has the files, or they are not what they should be.
    """
    if in_mirror("cifar10", "cifar10_train.parquet"):
        train, test = _jpeg("cifar10_train.parquet"), _jpeg("cifar10_test.parquet")
    else:
        with tarfile.open(fetch("cifar10", "cifar-10-binary.tar.gz")) as archive:
            batches = [_records(archive, f"data_batch_{index}.bin") for index in range(1, 6)]
            train = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
            test = _records(archive, "test_batch.bin")
    return {"train_x": train[0], "train_y": train[1], "test_x": test[0], "test_y": test[1]}


def _records(archive: tarfile.TarFile, name: str) -> tuple[Tensor, Tensor]:
    member = archive.extractfile(f"cifar-10-batches-bin/{name}")
    if member is None:
        raise InputError(f"cifar-10-binary.tar.gz: has no {name}")
    records_N = torch.frombuffer(bytearray(member.read()), dtype=torch.uint8).view(-1, 1 + 3 * 32 * 32)
    return records_N[:, 1:].reshape(-1, 3, 32, 32).clone(), records_N[:, 0].long()


def _jpeg(name: str) -> tuple[Tensor, Tensor]:
    import pyarrow.parquet
    from PIL import Image

    table = pyarrow.parquet.read_table(fetch("cifar10", name), columns=["label", "image_jpeg"])
    images = [np.asarray(Image.open(io.BytesIO(jpeg.as_py()))) for jpeg in table["image_jpeg"]]
    x_NHWC = torch.from_numpy(np.stack(images))
    return x_NHWC.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(table["label"].to_numpy()).long()
