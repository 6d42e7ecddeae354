"""MotionRGBD's figures: accuracies of the rows (F1), parts of the label with and without order (F2), sample clips (F3)."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stages.common.report.figures import write_svg
from stages.motionrgbd.claims import fused, per_seed
from stages.motionrgbd.params import MODALITIES, MotionrgbdParams

FACTORS = ("trajectory", "glove", "depth")


def draw_figures(results: pd.DataFrame, params: MotionrgbdParams, runs: Path, output: Path) -> None:
    """Write all figures into the folder `output`."""
    write_svg(accuracies(results, params), output / "accuracy.svg")
    if params.data.name == "generated":
        write_svg(factor_bars(results, params), output / "factors.svg")
    shutil.copy(runs / "evaluate" / "samples.png", output / "samples.png")


def accuracies(results: pd.DataFrame, params: MotionrgbdParams) -> Figure:
    """F1: top-1 of single modalities and fusions; a dot per seed."""
    rows = {m.upper(): per_seed(results, "main", "full", m) for m in MODALITIES}
    fusions = results[results["table"] == "fusion"]["method"].unique()
    rows |= {method: fused(results, method) for method in fusions}
    figure = Figure(figsize=(6.4, 0.35 * len(rows) + 0.8))
    axes = figure.subplots()
    for place, values in enumerate(rows.values()):
        axes.scatter(values, [place] * len(values), s=12, color="C3")
        axes.plot([values.mean()], [place], "|", markersize=14, color="C3")
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    if params.data.name == "generated":
        axes.axvline(50, color="0.6", linestyle="--", linewidth=0.8)
    axes.set(xlabel="top-1 %, test clips", title=f"{params.data.name} ({params.scale} scale)")
    return figure


def factor_bars(results: pd.DataFrame, params: MotionrgbdParams) -> Figure:
    """F2: accuracy of each part of the label by modality, and the trajectory's with frames permuted."""
    bars = [(f"{factor} accuracy", factor) for factor in FACTORS]
    bars.append(("trajectory accuracy, frames permuted", "trajectory,\npermuted"))
    figure = Figure(figsize=(6.4, 3.0))
    axes = figure.subplots()
    for number, modality in enumerate(MODALITIES):
        values = [per_seed(results, "main", "full", modality, metric) for metric, _ in bars]
        places = np.arange(len(bars)) + 0.35 * (number - 0.5)
        axes.bar(places, [v.mean() for v in values], 0.33, label=modality.upper())
        for place, seeds in zip(places, values, strict=True):
            axes.scatter([place] * len(seeds), seeds, s=8, color="k", zorder=3)
    axes.set_xticks(range(len(bars)), [label for _, label in bars])
    axes.set(ylabel="accuracy %", title=f"what each modality knows ({params.scale} scale)", ylim=(0, 105))
    axes.legend()
    return figure
