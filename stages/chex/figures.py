"""CHEX's figures: accuracy against FLOPs (F1), widths over training (F2), active channels over training (F3)."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stages.chex.claims import TITLES
from stages.chex.params import ChexParams, DataName
from stages.common.report.figures import write_svg
from stages.common.results import published

GREY = "0.6"


def draw_figures(results: pd.DataFrame, widths: pd.DataFrame, params: ChexParams, output: Path) -> None:
    """Write all figures into the folder `output`."""
    for data in params.data:
        write_svg(frontier(results, data, params), output / f"accuracy-against-flops-{data}.svg")
        if "chex" in params.methods:
            write_svg(width_history(widths, data, params), output / f"widths-over-training-{data}.svg")
            write_svg(active_history(widths, data, params), output / f"active-channels-{data}.svg")
    write_svg(published_frontier(), output / "published-frontier-imagenet.svg")


def frontier(results: pd.DataFrame, data: DataName, params: ChexParams) -> Figure:
    """F1: top-1 over the fraction of FLOPs, mean and standard deviation over seeds."""
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    rows = results[(results["data"] == data) & (results["table"] == "T1")]
    wide = rows.pivot_table(
        index=["method", "setting", "seed"], columns="metric", values="value"
    ).reset_index()
    others = iter(["C0", "C1", "C2", "C4", "C5", "C6", "C7", "C8", "C9"])
    for method in params.methods:
        points = (
            wide[wide["method"] == method].groupby("setting")[["macs_fraction", "top1"]].agg(["mean", "std"])
        )
        points = points.sort_values(("macs_fraction", "mean"))
        style: dict[str, Any] = {"lw": 1, "color": next(others)}
        if method == "chex":
            style = {"lw": 2.2, "color": "C3", "zorder": 3}
        axes.errorbar(
            points["macs_fraction", "mean"], points["top1", "mean"], points["top1", "std"], marker="o", ms=3,
            capsize=2, label=method, **style,
        )  # fmt: skip
    axes.axhline(
        wide.loc[wide["method"] == "dense", "top1"].mean(), color="black", ls=":", lw=1, label="dense"
    )
    axes.set(
        xlabel="FLOPs, fraction of dense", ylabel="top-1 %", title=f"{TITLES[data]} ({params.scale} scale)"
    )
    axes.legend(ncols=2)
    return figure


def published_frontier() -> Figure:
    """The paper's own frontier on ImageNet, read off its figure (published.csv)."""
    table = published("chex")
    rows = table[table["table"].str.startswith("F1") & (table["metric"] == "top1")]
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    for method, points in rows.groupby("method", sort=False):
        flops = points["setting"].str.extract(r"([\d.]+)G")[0].astype(float)
        ours = method == "CHEX"
        axes.plot(flops, points["value"], marker="o", ms=3, color="C3" if ours else GREY, lw=2 if ours else 1)
        axes.annotate(
            str(method), (flops.iloc[-1], points["value"].iloc[-1]), fontsize=6, color="C3" if ours else "0.4"
        )
    axes.set(xlabel="GMACs", ylabel="top-1 %", title="Published: ResNet-50 on ImageNet")
    return figure


def _chex_run(widths: pd.DataFrame, data: DataName, params: ChexParams) -> tuple[pd.DataFrame, float]:
    """Widths of the first seed's CHEX run at the middle target: steps x groups."""
    target = sorted(params.prune.flops)[len(params.prune.flops) // 2]
    chosen = widths[(widths["data"] == data) & (widths["method"] == "chex") & (widths["target"] == target)]
    run = chosen[chosen["seed"] == params.seeds[0]].dropna(axis=1)
    return run.set_index("step").drop(columns=["data", "method", "target", "seed"]), target


def width_history(widths: pd.DataFrame, data: DataName, params: ChexParams) -> Figure:
    """F2: active channels of every group after each choice of channels, as a heat map."""
    run, target = _chex_run(widths, data, params)
    share = (run / run.max()).to_numpy().T
    figure = Figure(figsize=(6, 0.6 + 0.22 * max(8, share.shape[0])))
    axes = figure.subplots()
    image = axes.imshow(share, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    axes.set_yticks(range(len(run.columns)), list(run.columns), fontsize=6)
    ticks = np.linspace(0, len(run) - 1, min(len(run), 8)).astype(int)
    axes.set_xticks(ticks, [str(run.index[i]) for i in ticks])
    axes.set(
        xlabel="step",
        title=f"CHEX, {TITLES[data]}, FLOPs {target:.0%}: active share of each layer's channels",
    )
    axes.grid(False)
    figure.colorbar(image, ax=axes)
    return figure


def active_history(widths: pd.DataFrame, data: DataName, params: ChexParams) -> Figure:
    """F3: the active fraction of all prunable channels over training."""
    figure = Figure(figsize=(6, 3))
    axes = figure.subplots()
    run, target = _chex_run(widths, data, params)
    total = run.sum(axis=1)
    axes.step(
        [*run.index, params.data[data].steps],
        [*(total / total.iloc[0]), total.iloc[-1] / total.iloc[0]],
        where="post",
    )
    axes.set(
        xlabel="step",
        ylabel="active / all channels",
        ylim=(0, 1.05),
        title=f"CHEX, {TITLES[data]}, FLOPs {target:.0%}",
    )
    return figure
