"""UOT's figures.

Accuracy by target size (F1), the sweeps (F2), the theory (F3), overlap of selections (F4).
"""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from stages.common.report.figures import write_svg
from stages.uot.claims import main_setting, per_seed, setting
from stages.uot.params import UotParams

STYLES: dict[str, dict[str, Any]] = {
    "uot": {"color": "C3", "lw": 2.2},
    "vanilla": {"color": "C0"},
    "scratch": {"color": "0.6"},
}


def draw_figures(results: pd.DataFrame, params: UotParams, output: Path) -> None:
    """Write all figures into the folder `output`."""
    write_svg(by_target_size(results, params), output / "accuracy-by-target-size.svg")
    if params.finetune.k_sweep and params.finetune.source_weights:
        write_svg(sweeps(results, params), output / "selection-size-and-weight.svg")
    write_svg(theory(results), output / "theory.svg")
    if (results["table"] == "T1").any():
        write_svg(overlaps(results), output / "released-overlap.svg")


def by_target_size(results: pd.DataFrame, params: UotParams) -> Figure:
    """F1: top-1 over the fraction of the target's training images, mean and deviation over seeds."""
    fractions = sorted({params.finetune.fraction, *params.finetune.fractions})
    first = next(iter(params.pretraining))
    figure = Figure(figsize=(3.4 * len(params.pretraining), 3.2))
    panels = figure.subplots(1, len(params.pretraining), sharey=True, squeeze=False)[0]
    for axes, pretraining in zip(panels, params.pretraining, strict=True):
        for row, style in STYLES.items():
            start = first if row == "scratch" else pretraining  # which has no start: run once
            values = [per_seed(results, row, main_setting(params, start, row, f)) for f in fractions]
            means, deviations = [v.mean() for v in values], [v.std() for v in values]
            axes.errorbar(fractions, means, deviations, marker="o", ms=3, capsize=2, label=row, **style)
        axes.set(
            xscale="log", xlabel="fraction of the target", title=f"start {pretraining} ({params.scale} scale)"
        )
        axes.set_xticks(fractions, [f"{f:g}" for f in fractions])
        axes.minorticks_off()
    panels[0].set(ylabel="top-1 %")
    panels[0].legend()
    return figure


def sweeps(results: pd.DataFrame, params: UotParams) -> Figure:
    """F2: top-1 over the number of selected classes, and over the weight of the source loss."""
    first, start = next(iter(params.pretraining.items()))
    fine, select = params.finetune, params.select
    figure = Figure(figsize=(6.8, 3.2))
    left, right = figure.subplots(1, 2, sharey=True)
    sizes = sorted({select.k, *fine.k_sweep})
    weights = sorted({start.source_weight, *fine.source_weights})
    for row, colour in (("uot", "C3"), ("random", "C7")):
        values = [
            per_seed(results, row, setting(first, fine.fraction, k, start.source_weight)) for k in sizes
        ]
        left.errorbar(
            sizes,
            [v.mean() for v in values],
            [v.std() for v in values],
            marker="o",
            ms=3,
            label=row,
            color=colour,
        )
    for row, colour in (("uot", "C3"), ("all", "C2")):
        k = select.k if row == "uot" else 0
        values = [per_seed(results, row, setting(first, fine.fraction, k, weight)) for weight in weights]
        right.errorbar(
            weights,
            [v.mean() for v in values],
            [v.std() for v in values],
            marker="o",
            ms=3,
            label=row,
            color=colour,
        )
    left.set(xlabel="selected classes K", ylabel="top-1 %", title=f"start {first} ({params.scale} scale)")
    right.set(xlabel="weight of the source loss", xscale="log")
    left.legend()
    right.legend()
    return figure


def theory(results: pd.DataFrame) -> Figure:
    """F3: excess risk over samples by start, and over the target's weight by distance of the source."""
    figure = Figure(figsize=(6.8, 3.2))
    left, right = figure.subplots(1, 2)
    table = results[results["table"] == "T5"]
    parts = table["setting"].str.extract(r"n (?P<n>\d+), start (?P<start>[\d.]+),").astype(float)
    for start, rows in table.assign(**parts).groupby("start"):
        means = rows.groupby("n")["value"].mean()
        left.loglog(means.index, means, marker="o", ms=3, label=f"start {start:g} away")
    left.set(xlabel="target samples n", ylabel="excess risk", title="fine-tuning only")
    table = results[results["table"] == "T6"]
    delta = table["setting"].str.extract(r"delta ([\d.]+)$")[0].astype(float)
    alpha = table["method"].str.removeprefix("alpha ").astype(float)
    for distance, rows in table.assign(delta=delta, alpha=alpha).groupby("delta"):
        means = rows.groupby("alpha")["value"].mean()
        right.semilogy(means.index, means, marker="o", ms=3, label=f"source {distance:g} away")
    right.set(xlabel="weight of the target's gradient", title="joint, n = 512")
    left.legend()
    right.legend()
    return figure


def overlaps(results: pd.DataFrame) -> Figure:
    """F4: how much other selections from the released class means share with uot's."""
    table = results[
        (results["table"] == "T1") & (results["metric"] == "overlap") & (results["method"] != "uot")
    ]
    starts = sorted(table["setting"].unique(), reverse=True)
    figure = Figure(figsize=(6.8, 3.2))
    panels = figure.subplots(1, len(starts), sharey=True, squeeze=False)[0]
    for axes, start in zip(panels, starts, strict=True):
        wide = table[table["setting"] == start].pivot_table(index="data", columns="method", values="value")
        image = axes.imshow(wide, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        axes.set_xticks(range(len(wide.columns)), list(wide.columns), rotation=30, ha="right", fontsize=7)
        axes.set_yticks(range(len(wide)), list(wide.index))
        axes.set(title=f"{start}: classes shared with uot, %")
        axes.grid(False)
    figure.colorbar(image, ax=list(panels))
    return figure
