"""ELSA's figures: top-1 of every row by seed (F1), and what mixers cost (F2)."""

from pathlib import Path
from typing import get_args

import pandas as pd
from matplotlib.figure import Figure

from stages.common.report.figures import write_svg
from stages.elsa.claims import per_seed
from stages.elsa.params import ElsaParams, MixerName


def draw_figures(
    results: pd.DataFrame, costs: dict[str, list[float]], rows: list[str], params: ElsaParams, output: Path
) -> None:
    """Write all figures into the folder `output`; `costs` are by "<mixer> <channels>"."""
    write_svg(accuracies(results, rows, params), output / "top1.svg")
    write_svg(cost_of_mixers(costs), output / "cost.svg")


def accuracies(results: pd.DataFrame, rows: list[str], params: ElsaParams) -> Figure:
    """F1: a dot per seed, a bar at the mean."""
    figure = Figure(figsize=(6.4, 0.32 * len(rows) + 1))
    axes = figure.subplots()
    for place, name in enumerate(reversed(rows)):
        values = per_seed(results, name)
        colour = "C3" if name == "elsa" else "C0"
        axes.plot(values, [place] * len(values), "o", ms=4, color=colour)
        axes.plot([values.mean()], [place], "|", ms=14, color=colour)
    axes.set_yticks(range(len(rows)), list(reversed(rows)))
    axes.set(xlabel="top-1 %", title=f"{params.pretrain.data} ({params.scale} scale)")
    return figure


def cost_of_mixers(costs: dict[str, list[float]]) -> Figure:
    """F2: CPU time of a training step of each mixer at the shapes of Swin-T's stages 1 to 3."""
    figure = Figure(figsize=(6.4, 3.2))
    axes = figure.subplots()
    shapes = list(dict.fromkeys(key.rpartition(" ")[2] for key in costs))
    for mixer in get_args(MixerName):
        axes.plot(shapes, [costs[f"{mixer} {shape}"][1] for shape in shapes], marker="o", ms=4, label=mixer)
    axes.set(yscale="log", xlabel="channels x pixels", ylabel="ms, forward and backward")
    axes.legend(fontsize=7)
    return figure
