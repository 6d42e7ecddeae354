"""A generated hourly series whose spectrum and trend are known (card, `quick` scale).

Every variate has a random-walk trend, the periods 24 and 12, a period of 3.2 whose frequency lies above the
lowest modes, and autoregressive noise.
"""

import numpy as np
import pandas as pd

ROWS, VARIATES = 4000, 4
PERIODS = {24.0: 1.0, 12.0: 0.5, 3.2: 0.5}  # with their amplitudes
TREND_STEP = 0.03  # standard deviation of the random walk's steps
NOISE, PERSISTENCE = 0.2, 0.7  # of the AR(1) noise


def generate(seed: int = 0) -> tuple[pd.DatetimeIndex, np.ndarray]:
    """Dates and values `[4000, 4]`; the same for the same seed."""
    rng = np.random.default_rng(seed)
    hours = np.arange(ROWS)
    columns = []
    for _ in range(VARIATES):
        trend = np.cumsum(rng.normal(0, TREND_STEP, ROWS))
        seasons = [
            amplitude * np.sin(2 * np.pi * hours / period + rng.uniform(0, 2 * np.pi))
            for period, amplitude in PERIODS.items()
        ]
        noise = np.zeros(ROWS)
        shocks = rng.normal(0, NOISE, ROWS)
        for t in range(1, ROWS):
            noise[t] = PERSISTENCE * noise[t - 1] + shocks[t]
        columns.append(trend + sum(seasons) + noise)
    return pd.date_range("2020-01-01", periods=ROWS, freq="h"), np.stack(columns, axis=1)
