"""FEDformer's figures: cost against length (F1), errors per setting (F2)."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stages.common.report.figures import write_svg
from stages.fedformer.claims import NAMES, Results
from stages.fedformer.complexity import HORIZONS, LENGTHS, slope
from stages.fedformer.data import TITLES
from stages.fedformer.params import DataName, FedformerParams


def draw_figures(
    frame: pd.DataFrame, blocks: dict[str, list[float]], models: dict[str, list[list[float]]],
    params: FedformerParams, output: Path,
) -> None:  # fmt: skip
    """Write all figures into the folder `output`.

    Args:
        frame: tidy results.
        blocks: seconds of a forward pass per block and length.
        models: seconds and kept bytes of a forward pass per model and horizon.
        params: names data sets and models.
        output: an existing folder.
    """
    write_svg(cost(blocks, models), output / "complexity.svg")
    for data in params.data:
        write_svg(errors(frame, data, params), output / f"errors-{data}.svg")


def cost(blocks: dict[str, list[float]], models: dict[str, list[list[float]]]) -> Figure:
    """F1: time of blocks against length, time and memory of models against horizon."""
    figure = Figure(figsize=(10, 3.2))
    axes = figure.subplots(1, 3)
    for name, seconds in blocks.items():
        axes[0].loglog(
            LENGTHS,
            [1e3 * s for s in seconds],
            marker="o",
            ms=3,
            label=f"{name} (slope {slope(LENGTHS, seconds):.2f})",
        )
    axes[0].set(xlabel="length", ylabel="forward ms, one thread", title="blocks")
    for name, costs in models.items():
        axes[1].plot(HORIZONS, [1e3 * seconds for seconds, _ in costs], marker="o", ms=3, label=name)
        axes[2].plot(HORIZONS, [kept / 2**20 for _, kept in costs], marker="o", ms=3, label=name)
    axes[1].set(xlabel="horizon, input 96", ylabel="forward ms, batch 2", title="models: time")
    axes[2].set(xlabel="horizon, input 96", ylabel="MiB kept for backward", title="models: memory")
    for axis in axes:
        axis.legend()
    figure.tight_layout()
    return figure


def errors(frame: pd.DataFrame, data: DataName, params: FedformerParams) -> Figure:
    """F2: test error of every model, one point per seed and horizon, multivariate."""
    results, recipe = Results(frame, params), params.data[data]
    figure = Figure(figsize=(6, 0.8 + 0.28 * len(recipe.models)))
    axes = figure.subplots()
    horizons = sorted({horizon for found in recipe.models.values() for horizon in found})
    for row, model in enumerate(recipe.models):
        for i, horizon in enumerate(horizons):
            values = results.per_seed(data, horizon, model)
            label = f"horizon {horizon}" if row == 0 else None
            axes.scatter(values, np.full(len(values), row), s=14, color=f"C{i}", alpha=0.8, label=label)
    axes.set_yticks(range(len(recipe.models)), [NAMES[model] for model in recipe.models])
    axes.invert_yaxis()
    axes.set(xlabel="MSE on all test windows, scaled values", title=f"{TITLES[data]} ({params.scale} scale)")
    if horizons:
        axes.legend()
    return figure
