"""ZenDet's figures: best score by evaluations (F1), analytic against Monte-Carlo (F2), AP against entropy (F3)."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from stages.common.report.figures import write_svg
from stages.zendet.claims import score_table
from stages.zendet.params import ZendetParams

COLOURS = {"entropy": "C3", "random": "0.6", "resnet": "C0", "min-entropy": "C2"}


def draw_figures(results: pd.DataFrame, params: ZendetParams, output: Path) -> None:
    """Write all figures into the folder `output`."""
    write_svg(best_scores(results), output / "score-by-evaluations.svg")
    write_svg(fidelity(results, params), output / "analytic-against-monte-carlo.svg")
    write_svg(precision(results, params), output / "ap-against-entropy.svg")


def best_scores(results: pd.DataFrame) -> Figure:
    """F1: best score so far in the authors' setting, a line per seed."""
    figure = Figure(figsize=(4.2, 3))
    axes = figure.subplots()
    rows = results[results["table"] == "F1"]
    rows = rows.assign(at=rows["setting"].str.removeprefix("after ").astype(int)).sort_values("at")
    for method, part in rows.groupby("method"):
        for number, (_, line) in enumerate(part.groupby("seed")):
            label = {"entropy": "search", "random": "random walk"}[method] if number == 0 else None
            axes.plot(line["at"], line["value"], color=COLOURS[method], lw=1, label=label)
    axes.set(xlabel="evaluations", ylabel="best score (closed form, 480 px)")
    axes.legend()
    return figure


def fidelity(results: pd.DataFrame, params: ZendetParams) -> Figure:
    """F2: relative error of both formulas against Monte-Carlo, one panel per image size."""
    sizes = params.score_check.sizes
    figure = Figure(figsize=(3.6 * len(sizes), 3))
    for axes, size in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        table = score_table(results, f"{size} px")
        for method, colour in (("closed form", "0.6"), ("analytic", "C3")):
            axes.scatter(table["monte carlo"], table[method], s=10, color=colour, label=method)
        ends = [table["monte carlo"].min(), table["monte carlo"].max()]
        axes.plot(ends, ends, color="k", lw=0.6)
        axes.set(xlabel="Monte-Carlo score", ylabel="score", title=f"{size} px")
    axes.legend()
    return figure


def precision(results: pd.DataFrame, params: ZendetParams) -> Figure:
    """F3: AP of every trained detector against the entropy of its backbone."""
    heads = params.heads
    figure = Figure(figsize=(3.6 * len(heads), 3))
    rows = results[results["table"] == "T1"]
    for axes, head in zip(figure.subplots(1, len(heads), squeeze=False)[0], heads, strict=True):
        wide = rows[rows["setting"] == head].pivot(index=["method", "seed"], columns="metric", values="value")
        for method, part in wide.groupby(level="method"):
            axes.scatter(part["entropy"], part["AP"], s=14, label=method, color=COLOURS.get(method))
        axes.set(xlabel="entropy score of the backbone", ylabel="AP %", title=head)
    axes.legend()
    return figure
