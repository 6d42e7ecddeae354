"""Forecast your own series: a CSV file with a `date` column in, a CSV file with the next steps out.

    python -m stages.fedformer.forecast series.csv --horizon 24 --out forecast.csv [--model fedformer-f]
    [--input 96]

From Python: `forecast(Path("series.csv"), horizon=24)` returns the forecast and its errors. The first 80 %
of the rows train the model, the last 20 % stop the training; the errors on those are given beside the floor
that repeats the last value, because a model that does not beat it is of no use.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pandas as pd
import torch

from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import start_device
from stages.common.stage.errors import InputError, ParameterError
from stages.common.stage.files import write_atomic
from stages.common.stage.run import run, seed_everything
from stages.fedformer.cells import Job, build_model
from stages.fedformer.data import Series, make_series, windows_of
from stages.fedformer.errors import window_errors
from stages.fedformer.method.linear import RepeatLast
from stages.fedformer.method.time_features import time_features
from stages.fedformer.params import ModelName, Recipe, Wavelet
from stages.fedformer.table import read_table, regular_step
from stages.fedformer.training import fit

TRAIN_SHARE = 0.8
BATCH = 32


@dataclass(frozen=True)
class Forecast:
    """The next steps in the units of the file, and mean squared errors on scaled values over the last 20 %
    of it.
    """

    table: pd.DataFrame  # `date` and the file's columns
    mse: float
    mse_repeat_last: float


def forecast(
    path: Path, horizon: int, model: ModelName = "fedformer-f", input_length: int = 96, width: int = 64,
    epochs: int = 10, lr: float = 1e-3, seed: int = 0,
) -> Forecast:  # fmt: skip
    """Train a model on the series in `path` and forecast the `horizon` steps after its last row.

    Args:
        path: CSV file, plain or gzipped: a column `date` with equal steps, every other column numeric.
        horizon: steps to forecast.
        model: any that `ModelName` lists.
        input_length: steps that the model sees, at least 4.
        width: of the model, a multiple of 8.
        epochs: at most; training stops after three without a better validation error.
        lr: learning rate.
        seed: of weights, order and random modes.

    Raises:
        ParameterError: a number out of range.
        InputError: the file is no such series (see `table.py`), or too short.
    """
    if horizon < 1 or input_length < 4 or width % 8 or width < 8 or epochs < 1 or lr <= 0:
        raise ParameterError(
            "horizon and epochs must be at least 1, input at least 4, width a multiple of 8, lr above 0; got "
            f"{horizon}, {epochs}, {input_length}, {width}, {lr:g}"
        )
    seed_everything(seed)
    dates, frame = read_table(path)
    step = regular_step(dates, path)
    rows = len(frame)
    needed = _rows_needed(input_length, horizon)
    if rows < needed:
        raise InputError(f"{path}: {rows} rows; input {input_length} and horizon {horizon} need {needed}")
    recipe = Recipe(
        seq_len=input_length, label_len=input_length // 2, features=["M"], models={model: [horizon]},
        variations=[], width=width, heads=8, hidden=2 * width, modes=64, kernels=[24],
        wavelet=Wavelet(polynomials=4, self_channels=8, cross_channels=8, alpha=8, skipped=3), batch=BATCH,
        epochs=epochs, patience=3, train_windows=None, lr=lr, spectral_lr=1.0, linear_lr=lr,
    )  # fmt: skip
    device = start_device()
    borders = (int(rows * TRAIN_SHARE), rows, rows)
    series = make_series(dates, frame.to_numpy(), borders, "h").to(device)
    # build_model asks a job for nothing but its horizon and variation
    network = build_model(model, Job("generated", "M", horizon), recipe, frame.shape[1], seed).to(device)
    if model != "repeat-last":
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Checkpoint(Path(folder) / "training.ckpt")
            fit(network, series, recipe, horizon, lr, seed, lambda values, step: None, checkpoint)
    mse, floor = (
        float(window_errors(m, series, "val", recipe, horizon)[0].mean())
        for m in (network, RepeatLast(horizon))
    )
    future = pd.DatetimeIndex([dates[-1] + step * (i + 1) for i in range(horizon)])
    table = pd.DataFrame(_next_steps(network, series, recipe, future), columns=frame.columns)
    table.insert(0, "date", future)
    return Forecast(table, mse, floor)


def _rows_needed(input_length: int, horizon: int) -> int:
    """The least number of rows that gives a batch of training windows and a validation window."""
    rows = input_length + horizon
    while True:
        borders = (int(rows * TRAIN_SHARE), rows, rows)
        training = windows_of(borders, "train", input_length, horizon)
        if len(training) >= BATCH and windows_of(borders, "val", input_length, horizon):
            return rows
        rows += 1


@torch.no_grad()
def _next_steps(
    network: torch.nn.Module, series: Series, recipe: Recipe, future: pd.DatetimeIndex
) -> torch.Tensor:
    """`[horizon, variates]` in the units of the file."""
    network.eval()
    values_1IC = series.values_TC[None, -recipe.seq_len :]
    marks = torch.from_numpy(time_features(future.to_numpy(), "h")).float().to(values_1IC.device)
    past_1IF = series.marks_TF[None, -recipe.seq_len :]
    start = recipe.label_len
    decoder = torch.cat(
        [values_1IC[:, -start:], values_1IC.new_zeros(1, len(future), values_1IC.shape[2])], dim=1
    )
    decoder_marks = torch.cat([past_1IF[:, -start:], marks[None]], dim=1)
    scaled_OC = network(values_1IC, past_1IF, decoder, decoder_marks)[0].double().cpu()
    return scaled_OC * series.std_C + series.mean_C


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="CSV file with a column 'date'")
    parser.add_argument("--horizon", type=int, required=True, help="steps to forecast")
    parser.add_argument("--out", type=Path, required=True, help="CSV file to write")
    parser.add_argument("--model", choices=get_args(ModelName), default="fedformer-f")
    parser.add_argument("--input", type=int, default=96, help="steps that the model sees")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args()
    result = forecast(o.file, o.horizon, o.model, o.input, o.width, o.epochs, o.lr, o.seed)
    write_atomic(o.out, result.table.to_csv(index=False))
    print(
        f"{o.out}: {o.horizon} steps; on the last 20 % of {o.file.name} MSE {result.mse:.4f} ({o.model}), "
        f"{result.mse_repeat_last:.4f} (last value repeated)"
    )


if __name__ == "__main__":
    run(main)
