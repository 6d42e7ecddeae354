"""Figures: rates (F1), error against gamma (F2), counterexamples (F3), skewed noise (F4), extensions (F5), CIFAR-10 (F6)."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.adam import bilevel, compositional, counterexamples, minmax
from stages.adam.fits import against
from stages.adam.params import AdamParams
from stages.common.report.figures import write_svg

GUIDE: dict[str, Any] = {"color": "0.5", "ls": ":", "lw": 1}


def draw_figures(results: pd.DataFrame, curves: pd.DataFrame, params: AdamParams, output: Path) -> None:
    """Write all figures into the folder `output`."""
    write_svg(rates(results, params), output / "rates.svg")
    write_svg(variance(results, params), output / "error-against-gamma.svg")
    write_svg(walks(curves, params), output / "counterexamples.svg")
    write_svg(floors(curves, params), output / "skewed-noise.svg")
    write_svg(extensions(results, params), output / "extensions.svg")
    if params.cifar10:
        write_svg(accuracy_curves(curves), output / "cifar10.svg")


def _power(axes: Axes, x: np.ndarray, y: np.ndarray, exponent: float, label: str) -> None:
    """A dotted guide of the predicted exponent, just above the curve's start."""
    axes.plot(x, 1.3 * y[0] * (x / x[0]) ** exponent, label=label, **GUIDE)


def _means(axes: Axes, x_M: np.ndarray, values_MS: np.ndarray, label: str) -> None:
    error_M = values_MS.std(axis=1, ddof=1) / values_MS.shape[1] ** 0.5 if values_MS.shape[1] > 1 else None
    axes.errorbar(x_M, values_MS.mean(axis=1), error_M, marker="o", ms=3, capsize=2, lw=1, label=label)


def rates(results: pd.DataFrame, params: AdamParams) -> Figure:
    """F1: averaged squared gradient norm, and the first moment's error, against the horizon."""
    figure = Figure(figsize=(9, 3.6))
    left, right = figure.subplots(1, 2)
    for axes, metric, title in (
        (left, "avg_grad_sq", "mean of ‖∇F‖²"),
        (right, "avg_D", "mean of ‖v − ∇F‖²"),
    ):
        for member in params.rate.members:
            x_M, values_MS = against(results, "T", metric, table="T1", method=member)
            _means(axes, x_M, values_MS, member)
        _power(axes, x_M, values_MS.mean(axis=1), -0.5, "T^-1/2")
        axes.set(xscale="log", yscale="log", xlabel="T", title=f"{title} ({params.scale} scale)")
    left.legend(ncols=2)
    return figure


def variance(results: pd.DataFrame, params: AdamParams) -> Figure:
    """F2: the first moment's error, second half of the steps, against gamma."""
    figure = Figure(figsize=(5, 3.6))
    axes = figure.subplots()
    for member in dict.fromkeys(results.loc[results["table"] == "T2", "method"]):
        _means(axes, *against(results, "gamma", "tail_D", table="T2", method=member), member)
    gamma = np.geomspace(min(params.rate.gammas), 1, 50)
    axes.plot(gamma, gamma / (2 - gamma), label="σ² γ/(2−γ)", **GUIDE)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="γ = 1 − β",
        ylabel="tail of ‖v − ∇F‖²",
        title="Variance diminishes with γ",
    )
    axes.legend(ncols=2)
    return figure


def walks(curves: pd.DataFrame, params: AdamParams) -> Figure:
    """F3: mean position on Reddi's problem over steps."""
    figure = Figure(figsize=(9, 3.2))
    for axes, method in zip(figure.subplots(1, 2, sharey=True), counterexamples.MEMBERS, strict=True):
        chosen = curves[(curves["experiment"] == "counterexamples") & (curves["method"] == method)]
        for setting, points in chosen.groupby("setting", sort=False):
            data, _, schedule = str(setting).rpartition(", ")
            if data == counterexamples.LITE:
                axes.plot(points["step"], points["mean"], lw=1.2, label=schedule)
        axes.axhline(-1, **GUIDE)
        axes.set(
            xscale="log", xlabel="step", ylabel="x (optimum −1)", title=f"{method}, {counterexamples.LITE}"
        )
    axes.legend()
    return figure


def floors(curves: pd.DataFrame, params: AdamParams) -> Figure:
    """F4: Adam under skewed noise, both step sizes."""
    figure = Figure(figsize=(6, 3.6))
    axes = figure.subplots()
    chosen = curves[(curves["experiment"] == "skewed") & (curves["method"] == "adam")]
    for i, beta in enumerate(params.skewed.betas):
        for eta, style in zip(params.skewed.etas, ("-", "--"), strict=True):
            setting = f"beta={beta:g}, eta={eta:g}"
            points = chosen[chosen["setting"] == setting]
            axes.plot(points["step"], points["mean"], style, color=f"C{i}", lw=1, label=setting)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="step",
        ylabel="‖∇F‖², mean over seeds",
        title="Adam under skewed noise",
    )
    axes.legend(ncols=2)
    return figure


def extensions(results: pd.DataFrame, params: AdamParams) -> Figure:
    """F5: averaged squared gradient norm against the horizon on the min-max, compositional and bilevel problems."""
    figure = Figure(figsize=(12, 3.6))
    for axes, data in zip(
        figure.subplots(1, 3), (minmax.QUADRATIC, compositional.DATA, bilevel.QUADRATIC), strict=True
    ):
        rows = results[(results["data"] == data) & (results["metric"] == "avg_grad_sq")]
        for method in dict.fromkeys(rows["method"]):
            x_M, values_MS = against(results, "T", "avg_grad_sq", data=data, method=method)
            if values_MS.max() < 1e3:  # what diverges is in the table
                _means(axes, x_M, values_MS, method)
                start_M = values_MS.mean(axis=1)
        _power(axes, x_M, start_M, -0.5, "T^-1/2")
        axes.set(xscale="log", yscale="log", xlabel="T", title=data)
        axes.legend()
    return figure


def accuracy_curves(curves: pd.DataFrame) -> Figure:
    """F6: test accuracy over epochs on CIFAR-10, mean over seeds."""
    figure = Figure(figsize=(6, 3.6))
    axes = figure.subplots()
    chosen = curves[(curves["experiment"] == "cifar10") & (curves["metric"] == "test_accuracy")]
    for method, points in chosen.groupby("method", sort=False):
        mean = points.groupby("step")["mean"].mean()
        axes.plot(mean.index, mean, lw=1, label=str(method))
    axes.set(xlabel="epoch", ylabel="test accuracy %", title="CIFAR-10, mean over seeds")
    axes.legend(ncols=2)
    return figure
