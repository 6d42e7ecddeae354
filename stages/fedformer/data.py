"""The data sets: where they are read from, how they are split and scaled, and windows of them as batches
(card, "Data").

Shapes: T rows, C variates, F calendar features, B batch, I input length, S start length, O horizon, L = S +
    O.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.common.datasets import fetch, in_mirror
from stages.common.stage.errors import InputError
from stages.fedformer.method.time_features import Frequency, time_features
from stages.fedformer.params import DataName
from stages.fedformer.table import read_table

Split = Literal["train", "val", "test"]
Borders = tuple[int, int, int]  # rows at which training, validation and test end
MONTH = 30 * 24  # rows of the hourly ETT files


@dataclass(frozen=True)
class Benchmark:
    """A public file and what must be in it; `months` are rows of an ETT month, for their fixed borders."""

    title: str  # in the published tables
    file: str
    rows: int
    variates: int
    months: int | None = None


BENCHMARKS: dict[DataName, Benchmark] = {
    "ili": Benchmark("ILI", "national_illness.csv", 966, 7),
    "exchange": Benchmark("Exchange", "exchange_rate.csv", 7588, 8),
    "etth1": Benchmark("ETTh1", "ETTh1.csv", 17420, 7, MONTH),
    "etth2": Benchmark("ETTh2", "ETTh2.csv", 17420, 7, MONTH),
    "ettm1": Benchmark("ETTm1", "ETTm1.csv", 69680, 7, 4 * MONTH),
    "ettm2": Benchmark("ETTm2", "ETTm2.csv", 69680, 7, 4 * MONTH),
    "weather": Benchmark("Weather", "weather.csv", 52696, 21),
    "electricity": Benchmark("Electricity", "electricity.csv", 26304, 321),
    "traffic": Benchmark("Traffic", "traffic.csv", 17544, 862),
}
TITLES: dict[DataName, str] = {"generated": "Generated", **{name: b.title for name, b in BENCHMARKS.items()}}


@dataclass(frozen=True)
class Series:
    """One data set: standardised by mean and (population) standard deviation of its training rows."""

    values_TC: Tensor  # float32; the target is the last column
    marks_TF: Tensor  # float32
    mean_C: Tensor  # float64
    std_C: Tensor
    borders: Borders

    def only_target(self) -> "Series":
        """The univariate data set of the same rows."""
        return replace(self, values_TC=self.values_TC[:, -1:], mean_C=self.mean_C[-1:], std_C=self.std_C[-1:])

    def to(self, device: torch.device) -> "Series":
        """The same on another device; scaling stays where it is."""
        return replace(self, values_TC=self.values_TC.to(device), marks_TF=self.marks_TF.to(device))


def split_borders(rows: int, months: int | None) -> Borders:
    """12, 4 and 4 months where months have a fixed number of rows (ETT); else 70 % to train, the last 20 %
    to test.
    """
    if months:
        return 12 * months, 16 * months, 20 * months
    train, test = int(rows * 0.7), int(rows * 0.2)
    return train, rows - test, rows


def make_series(
    dates: pd.DatetimeIndex, values: np.ndarray, borders: Borders, frequency: Frequency
) -> Series:
    """Scale a table `[T, C]` and add calendar features."""
    train = values[: borders[0]]
    mean, std = train.mean(0), train.std(0)
    std = np.where(std == 0, 1.0, std)  # a column that never changes in training stays as it is
    marks = time_features(dates.to_numpy(), frequency)
    return Series(
        torch.from_numpy((values - mean) / std).float().contiguous(),
        torch.from_numpy(marks).float(),
        torch.from_numpy(mean),
        torch.from_numpy(std),
        borders,
    )


def read_benchmark(name: DataName, frequency: Frequency = "h") -> Series:
    """A public data set, from the mirror or its home.

    The calendar features are the hourly ones whatever the step, because all published runs use them.

    Raises:
        InputError: the file is missing or not the one that its name promises.
    """
    benchmark = BENCHMARKS[name]
    packed = f"{benchmark.file}.gz"
    path = fetch("timeseries", packed if in_mirror("timeseries", packed) else benchmark.file)
    dates, frame = read_table(path)
    if frame.shape != (benchmark.rows, benchmark.variates) or frame.columns[-1] != "OT":
        raise InputError(
            f"{path}: {frame.shape[0]} rows of {frame.shape[1]} variates, last column {frame.columns[-1]}; "
            f"{benchmark.title} has {benchmark.rows} of {benchmark.variates}, and OT last"
        )
    borders = split_borders(benchmark.rows, benchmark.months)
    return make_series(dates, frame.to_numpy(), borders, frequency)


def save_series(series: Series, path: Path) -> None:
    """One safetensors file."""
    tensors = {
        "values": series.values_TC, "marks": series.marks_TF, "mean": series.mean_C, "std": series.std_C,
        "borders": torch.tensor(series.borders),
    }  # fmt: skip
    save_file(tensors, path)


def open_series(path: Path) -> Series:
    """What `save_series` wrote."""
    t = load_file(path)
    first, second, third = t["borders"].tolist()
    return Series(t["values"], t["marks"], t["mean"], t["std"], (first, second, third))


def windows_of(borders: Borders, split: Split, seq_len: int, pred_len: int) -> range:
    """Rows at which the windows of a split start; validation and test windows reach I rows back for their
    input.
    """
    train, val, test = borders
    first, end = {"train": (0, train), "val": (train - seq_len, val), "test": (val - seq_len, test)}[split]
    return range(first, max(first, end - seq_len - pred_len + 1))


def window(
    series: Series, start: int, seq_len: int, label_len: int, pred_len: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One window: input `[I, C]` and its marks, start and horizon `[L, C]` and their marks."""
    middle = start + seq_len
    past, future = slice(start, middle), slice(middle - label_len, middle + pred_len)
    return series.values_TC[past], series.marks_TF[past], series.values_TC[future], series.marks_TF[future]


def batch(
    series: Series, starts_B: Sequence[int] | Tensor, seq_len: int, label_len: int, pred_len: int
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """What a model takes, (input, its marks, decoder input with zeros for the horizon, its marks), and the
    truth `[B, O, C]`.

    Gathered by index from the one array that holds the series.
    """
    rows_B1 = torch.as_tensor(starts_B, device=series.values_TC.device)[:, None]
    steps = torch.arange(seq_len + pred_len, device=rows_B1.device)
    values_BC, marks_BF = series.values_TC[rows_B1 + steps], series.marks_TF[rows_B1 + steps]
    past, future = slice(0, seq_len), slice(seq_len - label_len, None)
    decoder = values_BC[:, future].clone()
    decoder[:, label_len:] = 0
    inputs = (values_BC[:, past], marks_BF[:, past], decoder, marks_BF[:, future])
    return inputs, values_BC[:, seq_len:]
