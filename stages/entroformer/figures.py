"""Entroformer's figures: rates of the entropy models (F1), rate-distortion curves of real files (F2)."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from stages.common.report.figures import write_svg
from stages.entroformer.anchors import ANCHORS
from stages.entroformer.claims import curve, rate
from stages.entroformer.params import EntroformerParams

COLOURS = {"cnn": "C0", "ent": "C3", "context": "0.6", "serial": "0.6"}


def draw_figures(results: pd.DataFrame, params: EntroformerParams, output: Path) -> None:
    """Write all figures into the folder `output`."""
    if (results["table"] == "rates").any():
        write_svg(rates(results, params), output / "rates.svg")
    if (results["table"] == "files").any():
        write_svg(curves(results, params), output / "rate-distortion.svg")


def rates(results: pd.DataFrame, params: EntroformerParams) -> Figure:
    """F1: bits per pixel of the fixed latents per method, one point per seed."""
    methods = [
        method for track in params.tracks.values() if track.transform == "dct" for method in track.methods
    ]
    figure = Figure(figsize=(6.8, 0.3 * len(methods) + 1))
    axes = figure.subplots()
    for number, method in enumerate(reversed(methods)):
        values = rate(results, method)
        colour = COLOURS[method.partition("-")[0]]
        axes.plot(values, [number] * len(values), "o", ms=4, alpha=0.6, color=colour)
        axes.plot([values.mean()], [number], "|", ms=14, color=colour)
    axes.set_yticks(range(len(methods)), list(reversed(methods)))
    axes.set(
        xlabel="bits per pixel of fixed latents, held-out pictures",
        title=f"entropy models ({params.scale} scale)",
    )
    return figure


def curves(results: pd.DataFrame, params: EntroformerParams) -> Figure:
    """F2: PSNR over bits per pixel of real files, mean over seeds, and Pillow's codecs."""
    figure = Figure(figsize=(5.0, 3.6))
    axes = figure.subplots()
    trained = sorted(set(results.loc[results["table"] == "files", "method"]))
    for method in trained:
        points = [curve(results, method, seed) for seed in params.seeds]
        axes.plot(
            sum(p[0] for p in points) / len(points), sum(p[1] for p in points) / len(points), marker="o", ms=3, label=method
        )  # fmt: skip
    for name in ANCHORS:
        axes.plot(*curve(results, name, 0), ls="--", lw=1, label=name)
    axes.set(
        xlabel="bits per pixel, real files", ylabel="PSNR, dB", title=f"real files ({params.scale} scale)"
    )
    axes.legend()
    return figure
