"""HiCo's figures: accuracy of every method, and the simulation of gradual sampling."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from stages.common.report.figures import write_svg
from stages.hico.claims import LINEAR, per_seed
from stages.hico.gradual_theory import SCHEDULES
from stages.hico.params import HicoParams


def draw_figures(results: pd.DataFrame, params: HicoParams, output: Path) -> None:
    """Write all figures into the folder `output`."""
    write_svg(methods(results, params), output / "action-accuracy.svg")
    write_svg(simulation(results), output / "gradual-simulation.svg")


def methods(results: pd.DataFrame, params: HicoParams) -> Figure:
    """Linear action accuracy of each method; a line joins the arms of a seed, which share a world."""
    figure = Figure(figsize=(6, 3.2))
    axes = figure.subplots()
    places = np.arange(len(params.methods))
    columns = [per_seed(results, method, LINEAR) for method in params.methods]
    for seed in params.seeds:
        axes.plot(
            places, [column.get(seed, np.nan) for column in columns], "o-", ms=3, lw=0.8, label=f"seed {seed}"
        )
    axes.plot(places, [column.mean() for column in columns], "_", ms=22, mew=2, color="black", label="mean")
    axes.set_xticks(places, params.methods, rotation=20)
    axes.set(ylabel="linear action accuracy %", title=f"HiCo, {params.scale} scale")
    axes.legend(ncols=2)
    return figure


def simulation(results: pd.DataFrame) -> Figure:
    """Loss over steps for every schedule, median over seeds."""
    figure = Figure(figsize=(6, 3.2))
    axes = figure.subplots()
    rows = results[results["table"] == "H"]
    steps = rows["setting"].str.removeprefix("step ").astype(int)
    median = rows.assign(step=steps).groupby(["method", "step"])["value"].median()
    for name in SCHEDULES:
        curve = median.loc[name]
        axes.plot(curve.index, curve.to_numpy(), marker=".", ms=3, label=name)
    axes.set(xscale="log", yscale="log", xlabel="step", ylabel="loss", title="Simulation: distance schedules")
    axes.legend()
    return figure
