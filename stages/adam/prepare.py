"""adam-prepare: the images of the active scale.

Reads scikit-learn's digits, and CIFAR-10 from a mirror or its home where `cifar10` is set. Writes `data/adam/<scale>/`:
`digits.safetensors` with `train_x [1297, 64]` and `test_x [500, 64]` (float64, grey values over 16), `train_y`, `test_y`,
and `cifar10.safetensors` with `train_x [N, 3, 32, 32]` uint8 and so on.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor

from stages.adam.params import AdamParams
from stages.common.cifar10 import read_cifar10
from stages.common.stage.files import output_dir
from stages.common.stage.params import load_params
from stages.common.stage.run import run, seed_everything

DIGITS_TRAIN = 1297  # of 1,797; the rest is the test set (card, E6)


def main() -> None:
    """Prepare what the parameters name."""
    params = load_params(AdamParams, "adam")
    seed_everything(0)
    with output_dir(Path("data/adam") / params.scale) as folder:
        save_file(digits(), folder / "digits.safetensors")
        if params.cifar10:
            save_file(read_cifar10(), folder / "cifar10.safetensors")


def digits() -> dict[str, Tensor]:
    """The handwritten digits in a fixed shuffled order."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    order_N = torch.randperm(len(raw.target), generator=Generator().manual_seed(0))
    x_NI = torch.from_numpy(raw.data).double()[order_N] / 16
    y_N = torch.from_numpy(raw.target).long()[order_N]
    return {
        "train_x": x_NI[:DIGITS_TRAIN].contiguous(), "train_y": y_N[:DIGITS_TRAIN].contiguous(),
        "test_x": x_NI[DIGITS_TRAIN:].contiguous(), "test_y": y_N[DIGITS_TRAIN:].contiguous(),
    }  # fmt: skip


if __name__ == "__main__":
    run(main)
