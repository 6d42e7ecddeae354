"""Figures of ELSA's dense tasks: box AP, mask AP and mIoU of every row, by seed (F1)."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from stages.common.report.figures import write_svg
from stages.elsa.dense.claims import METRICS, per_seed
from stages.elsa.dense.params import ElsaDenseParams


def draw_figures(results: pd.DataFrame, params: ElsaDenseParams, output: Path) -> None:
    """Write all figures into the folder `output`."""
    write_svg(by_seed(results, params), output / "rows.svg")


def by_seed(results: pd.DataFrame, params: ElsaDenseParams) -> Figure:
    """F1: a dot per seed, a bar at the mean."""
    rows = list(reversed(params.mixers))
    figure = Figure(figsize=(7.2, 0.4 * len(rows) + 1.2))
    for axes, (metric, (_, name, _)) in zip(figure.subplots(1, 3, sharey=True), METRICS.items(), strict=True):
        for place, mixer in enumerate(rows):
            values = per_seed(results, mixer, metric)
            colour = "C3" if mixer == "elsa" else "C0"
            axes.plot(values, [place] * len(values), "o", ms=4, color=colour)
            axes.plot([values.mean()], [place], "|", ms=14, color=colour)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(-0.5, len(rows) - 0.5)
        axes.set_xlabel(f"{name} %")
    figure.suptitle(f"{params.scale} scale")
    return figure
