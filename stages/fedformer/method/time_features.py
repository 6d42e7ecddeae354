"""Calendar features of dates, each in [-0.5, 0.5] (card, "Embedding")."""

from typing import Literal

import numpy as np

Frequency = Literal["t", "h", "d", "w", "m"]  # minutes, hours, days, weeks, months
FEATURES: dict[Frequency, int] = {"t": 5, "h": 4, "d": 3, "w": 2, "m": 1}


def time_features(dates_N: np.ndarray, frequency: Frequency) -> np.ndarray:
    """Features `[N, F]` (float64) of `datetime64` dates, coarser ones last.

    `t` has minute, hour, weekday, day, day of year; `h` all but the minute; `d` the last three; `w` day and
    ISO week; `m` month.
    """
    stamps = dates_N.astype("datetime64[s]")
    days, months, years = (stamps.astype(f"datetime64[{unit}]") for unit in "DMY")
    number = days.astype(np.int64)  # 1970-01-01 was a Thursday
    weekday = (number + 3) % 7
    thursday = (days - weekday + 3).astype("datetime64[D]")
    first_of_its_year = thursday.astype("datetime64[Y]").astype("datetime64[D]")
    week = (thursday - first_of_its_year).astype(np.int64) // 7  # from 0
    day_of_month = (days - months.astype("datetime64[D]")).astype(np.int64)
    day_of_year = (days - years.astype("datetime64[D]")).astype(np.int64)
    seconds = stamps.astype(np.int64)
    minute = seconds // 60 % 60 / 59 - 0.5
    hour = seconds // 3600 % 24 / 23 - 0.5
    calendar = [weekday / 6 - 0.5, day_of_month / 30 - 0.5, day_of_year / 365 - 0.5]
    columns = {
        "t": [minute, hour, *calendar],
        "h": [hour, *calendar],
        "d": calendar,
        "w": [day_of_month / 30 - 0.5, week / 52 - 0.5],
        "m": [months.astype(np.int64) % 12 / 11 - 0.5],
    }
    return np.stack(columns[frequency], axis=1)
