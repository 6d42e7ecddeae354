"""Exponents: the slope of log mean over log x, with a bootstrap interval over seeds."""

from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
CONFIDENCE = 0.95


class Fit(NamedTuple):
    """A slope and its two-sided 95 % interval."""

    slope: float
    low: float
    high: float


def _slope(log_x_M: np.ndarray, log_y_MB: np.ndarray) -> np.ndarray:
    centred = log_x_M - log_x_M.mean()
    return centred @ log_y_MB / (centred @ centred)


def fit_loglog(x_M: np.ndarray, y_MS: np.ndarray, resamples: int = RESAMPLES) -> Fit:
    """Ordinary least squares of log mean_S(y) on log x.

    The mean over seeds is taken before the logarithm: it estimates the expectation that the theorem bounds. The interval is
    the percentile bootstrap over seeds, the same seeds at every x (a seed's noise is shared by its runs).

    Args:
        x_M: the M abscissae, such as horizons; positive.
        y_MS: values per abscissa and seed; positive.
        resamples: bootstrap samples.
    """
    log_x_M = np.log(np.asarray(x_M, dtype=float))
    seeds = y_MS.shape[1]
    picks_BS = np.random.default_rng(0).integers(0, seeds, (resamples, seeds))
    slopes_B = _slope(log_x_M, np.log(y_MS[:, picks_BS].mean(axis=2)))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(slopes_B, [tail, 100 - tail])
    return Fit(float(_slope(log_x_M, np.log(y_MS.mean(axis=1))[:, None])[0]), float(low), float(high))
