"""Exponents and per-seed numbers out of the tidy results."""

import numpy as np
import pandas as pd

from stages.adam.method.rates import Fit, fit_loglog


def per_seed(results: pd.DataFrame, metric: str, **where: str) -> pd.DataFrame:
    """The metric's values where the named columns have these values: [settings x seeds], indexed by setting."""
    rows = results[results["metric"] == metric]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    order = list(dict.fromkeys(rows["setting"]))
    return rows.pivot_table(index="setting", columns="seed", values="value").loc[order]


def against(results: pd.DataFrame, name: str, metric: str, **where: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers x [M] of the settings `<name>=<x>`, increasing, and the metric's values [M, S] there."""
    table = per_seed(results, metric, **where)
    x_M = np.array([float(setting.removeprefix(f"{name}=")) for setting in table.index])
    order = np.argsort(x_M)
    return x_M[order], table.to_numpy()[order]


def rate(results: pd.DataFrame, metric: str, **where: str) -> Fit:
    """The exponent of a metric in T, over all horizons."""
    return fit_loglog(*against(results, "T", metric, **where))
