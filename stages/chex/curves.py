"""Figures that the three studies share: a metric against FLOPs, and widths of layers over training."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure


def frontier(results: pd.DataFrame, metric: str, methods: Sequence[str], axis: str, title: str) -> Figure:
    """A metric over the fraction of FLOPs, mean and standard deviation over seeds.

    Args:
        results: rows of one table and data set.
        metric: what the vertical axis shows, under the name `axis`.
        methods: one line each.
        title: of the figure.
    """
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    wide = results.pivot_table(
        index=["method", "setting", "seed"], columns="metric", values="value"
    ).reset_index()
    others = iter(["C0", "C1", "C2", "C4", "C5", "C6", "C7", "C8", "C9"])
    for method in methods:
        chosen = wide[wide["method"] == method].groupby("setting")[["macs_fraction", metric]]
        points = chosen.agg(["mean", "std"]).sort_values(("macs_fraction", "mean"))
        style: dict[str, Any] = {"lw": 1, "color": next(others)}
        if method == "chex":
            style = {"lw": 2.2, "color": "C3", "zorder": 3}
        axes.errorbar(
            points["macs_fraction", "mean"], points[metric, "mean"], points[metric, "std"], marker="o", ms=3,
            capsize=2, label=method, **style,
        )  # fmt: skip
    dense = wide.loc[wide["method"] == "dense", metric].mean()
    axes.axhline(dense, color="black", ls=":", lw=1, label="dense")
    axes.set(xlabel="FLOPs, fraction of dense", ylabel=axis, title=title)
    axes.legend(ncols=2)
    return figure


def chex_run(widths: pd.DataFrame, part: str, target: float, seed: int) -> pd.DataFrame:
    """Active channels of a CHEX run: steps x groups."""
    chosen = (widths["part"] == part) & (widths["target"] == target) & (widths["seed"] == seed)
    run = widths[chosen & (widths["method"] == "chex")]
    return run.pivot_table(index="step", columns="group", values="active", sort=False)


def width_lines(run: pd.DataFrame, steps: int, title: str) -> Figure:
    """Active share of every layer's channels over the `steps` of a CHEX run."""
    figure = Figure(figsize=(6, 3.5))
    axes = figure.subplots()
    for group in run.columns:
        share = run[group] / run[group].iloc[0]
        axes.step([*run.index, steps], [*share, share.iloc[-1]], where="post", label=str(group), lw=1)
    axes.set(xlabel="step", ylabel="active / all channels", ylim=(0, 1.05), title=title)
    if len(run.columns) <= 12:
        axes.legend(ncols=3)
    return figure
