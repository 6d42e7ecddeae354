"""A CSV file of a time series: the first thing that can be wrong with it is told in one line.

The layout is the one of the six benchmarks: a column `date`, then one numeric column per variate.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from stages.common.stage.errors import InputError


def read_table(path: Path) -> tuple[pd.DatetimeIndex, pd.DataFrame]:
    """Dates and variates (float64) of a CSV file, plain or gzipped.

    Raises:
        InputError: no such file, not CSV, no or unreadable dates, a column that is not numeric, a missing
            value.
    """
    try:
        frame = pd.read_csv(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: not a CSV file ({str(error).splitlines()[0][:100]})") from None
    if "date" not in frame.columns:
        raise InputError(f"{path}: no column 'date'; columns are {', '.join(map(str, frame.columns))}")
    dates = pd.to_datetime(frame.pop("date"), errors="coerce", format="mixed")
    if dates.isna().any():
        raise InputError(f"{path}: line {_first(dates.isna().to_numpy())}: 'date' is not a date")
    if frame.shape[1] == 0:
        raise InputError(f"{path}: no column besides 'date'")
    for column in frame.columns:
        numeric = pd.to_numeric(frame[column], errors="coerce")
        wrong = (numeric.isna() & frame[column].notna()).to_numpy()
        if wrong.any():
            value = frame[column].iloc[int(wrong.argmax())]
            raise InputError(f"{path}: line {_first(wrong)}: column '{column}' is not numeric: {value!r}")
        missing = ~np.isfinite(numeric.to_numpy(dtype=float))
        if missing.any():
            raise InputError(f"{path}: line {_first(missing)}: column '{column}' has no finite value")
        frame[column] = numeric.astype(float)
    return pd.DatetimeIndex(dates), frame


def regular_step(dates: pd.DatetimeIndex, path: Path) -> pd.DateOffset | pd.Timedelta:
    """The one step between all dates: a fixed time, or a calendar month.

    Raises:
        InputError: fewer than three dates, or a gap, a repeated or an earlier date, with its line.
    """
    if len(dates) < 3:
        raise InputError(f"{path}: {len(dates)} rows; three are the least to know the step")
    steps = np.diff(dates.to_numpy()).astype("timedelta64[s]").astype(np.int64)
    months = np.diff(dates.year * 12 + dates.month)
    if (months == 1).all() and dates.day.nunique() == 1:
        return pd.DateOffset(months=1)
    values, counts = np.unique(steps, return_counts=True)
    usual = int(values[counts.argmax()])
    odd = steps != usual
    if odd.any() or usual <= 0:
        i = int(odd.argmax())
        raise InputError(
            f"{path}: line {i + 3}: {dates[i + 1]} follows {dates[i]}, but the step is "
            f"{pd.Timedelta(seconds=usual)}; fill gaps and sort by date first"
        )
    return pd.Timedelta(seconds=usual)


def _first(wrong: np.ndarray) -> int:
    return int(wrong.argmax()) + 2  # lines count from 1, and the first is the header
