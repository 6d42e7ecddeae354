"""CHEX's figures: accuracy against FLOPs (F1), widths over training (F2), active channels over training (F3)."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stages.chex.claims import TITLES
from stages.chex.curves import chex_run, frontier
from stages.chex.params import ChexParams, DataName
from stages.common.report.figures import write_svg
from stages.common.results import published

GREY = "0.6"


def draw_figures(results: pd.DataFrame, widths: pd.DataFrame, params: ChexParams, output: Path) -> None:
    """Write all figures into the folder `output`."""
    for data in params.data:
        rows = results[(results["data"] == data) & (results["table"] == "T1")]
        title = f"{TITLES[data]} ({params.scale} scale)"
        write_svg(
            frontier(rows, "top1", params.methods, "top-1 %", title),
            output / f"accuracy-against-flops-{data}.svg",
        )
        if "chex" in params.methods:
            write_svg(width_history(widths, data, params), output / f"widths-over-training-{data}.svg")
            write_svg(active_history(widths, data, params), output / f"active-channels-{data}.svg")
    write_svg(published_frontier(), output / "published-frontier-imagenet.svg")


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


def _middle_run(widths: pd.DataFrame, data: DataName, params: ChexParams) -> tuple[pd.DataFrame, float]:
    """Widths of the first seed's CHEX run at the middle target: steps x groups."""
    target = sorted(params.prune.flops)[len(params.prune.flops) // 2]
    return chex_run(widths, data, target, params.seeds[0]), target


def width_history(widths: pd.DataFrame, data: DataName, params: ChexParams) -> Figure:
    """F2: active channels of every group after each choice of channels, as a heat map."""
    run, target = _middle_run(widths, data, params)
    share = (run / run.max()).to_numpy().T
    figure = Figure(figsize=(6, 0.6 + 0.22 * max(8, share.shape[0])))
    axes = figure.subplots()
    image = axes.imshow(share, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    axes.set_yticks(range(len(run.columns)), [str(group) for group in run.columns], fontsize=6)
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
    run, target = _middle_run(widths, data, params)
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
