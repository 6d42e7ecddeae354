"""chex-points: the table, the claims' verdicts and the figures.

Reads `runs/chex-points/<scale>/evaluate/`, the slim networks in `prune/`, and the prepared data's classes. Writes
`reports/chex-points/<scale>/`: `results.parquet`, `table.md`, `claims.md`, `claims.json`, figures, and
`timings.json`: latencies, kept from the last run for what was measured on the same kind of machine, so that running
again changes no byte.
"""

from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from stages.chex.latency import latency_ratio
from stages.chex.measures import structure_key
from stages.chex.points.cells import dense_model, example, network_of, setting_of
from stages.chex.points.claims import check_claims
from stages.chex.points.params import MethodName, PointsParams
from stages.common.report.figures import write_svg
from stages.common.report.tables import markdown_table, mean_std
from stages.common.report.timings import Timings
from stages.common.report.write import report_folder, write_report
from stages.common.results import read_parquet
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, run

LABELS: dict[str, str] = {
    "dense": "dense",
    "uniform": "uniform widths, from scratch",
    "l1": "magnitude (L1), fine-tuned",
    "bn": "network slimming (BN scale), fine-tuned",
    "chex": "**CHEX**",
    "chex-no-regrow": "CHEX, no regrow (gradual pruning)",
    "chex-no-realloc": "CHEX, no re-allocation",
    "chex-wide-l1": "CHEX, L1 in wide layers (as released for images)",
}
TITLES = {"solids": "generated solids", "modelnet10": "ModelNet10", "modelnet40": "ModelNet40"}
PRETRAINED = ("l1", "bn")  # half of their steps train the dense network first
LATENCY_BATCH = 256
LATENCY_REPEATS = 31


def main() -> None:
    """Write the report of the active scale."""
    params = load_params(PointsParams, "chex-points")
    prepared, runs = Path("data/chex-points") / params.scale, Path("runs/chex-points") / params.scale
    first = params.seeds[0]
    networks = [runs / "prune" / f"{method}-{first}" for method in params.methods]
    with Stage("chex-points", params, [prepared, runs / "evaluate", *networks]):
        results = read_parquet(runs / "evaluate" / "results.parquet")
        widths = read_parquet(runs / "evaluate" / "widths.parquet")
        timings = Timings(report_folder("chex-points", params.scale) / "timings.json")
        speedups = measure_speedups(params, prepared, runs, timings)

        def draw(output: Path) -> None:
            write_svg(frontier(results, params), output / "accuracy-against-flops.svg")
            if "chex" in params.methods:
                write_svg(width_history(widths, params), output / "widths-over-training.svg")

        table = table_markdown(results, speedups, timings, params)
        claims = check_claims(results, params)
        write_report("chex-points", params.scale, results, table, claims, draw, timings)


def measure_speedups(
    params: PointsParams, prepared: Path, runs: Path, timings: Timings
) -> dict[tuple[MethodName, float], float]:
    """Dense over slim latency of the first seed's networks on one CPU thread: (method, target) -> ratio."""
    seed, cpu = params.seeds[0], torch.device("cpu")
    shape = tuple(example(params, LATENCY_BATCH).shape)
    speedups: dict[tuple[MethodName, float], float] = {}
    jobs = [(method, target) for method in params.methods for target in params.prune.flops]
    with progress("chex-points latency", len(jobs)) as bar:
        for method, target in jobs:
            dense, _ = dense_model(params, prepared, seed, cpu)
            network, _ = network_of(method, target, params, prepared, runs, seed, cpu)
            speedups[method, target] = timings.measure(
                f"batch {LATENCY_BATCH} {structure_key(network)}",
                lambda d=dense, n=network: [latency_ratio(d, n, shape, LATENCY_REPEATS).ratio],  # type: ignore[misc]
            )[0]
            bar.advance()
    return speedups


def table_markdown(
    results: pd.DataFrame,
    speedups: dict[tuple[MethodName, float], float],
    timings: Timings,
    params: PointsParams,
) -> str:
    """`table.md`: T4, point clouds."""
    scale = "small scale, not the paper's setting" if params.scale == "quick" else f"{params.scale} scale"
    header = [
        "method", "pre-trained?", "FLOPs target", "accuracy %", "class mean %", "FLOPs (kMACs)", "reduction", "params (k)",
        "latency, dense / slim",
    ]  # fmt: skip
    lines = [_line(results, "dense", None, 1.0)]
    for target in sorted(params.prune.flops, reverse=True):
        lines += [_line(results, method, target, speedups[method, target]) for method in params.methods]
    return (
        f"# CHEX on point clouds, {params.scale} scale\n\n## {TITLES[params.data.name]} ({scale})\n\n"
        f"PointNet on {params.data.points} points, {params.recipe.steps} steps of {params.recipe.batch} for every row; "
        f"mean ± std over n = {len(params.seeds)} seeds; the last weights, no voting. FLOPs are multiply-accumulates of "
        f"convolution and linear layers of the slim network. Latency: the physically slim network of seed "
        f"{params.seeds[0]}, median of {LATENCY_REPEATS} interleaved runs, batch {LATENCY_BATCH}, one thread, "
        f"{timings.machine}; above 1 is faster than dense.\n\n"
        + markdown_table(header, lines)
        + "\n## Published\n\nThe authors released neither code nor a recipe for point clouds, and "
        "`reports/published/chex.csv` has no number of theirs: there is nothing to compare with.\n"
    )


def _line(results: pd.DataFrame, method: str, target: float | None, speedup: float) -> list[str]:
    rows = results[(results["method"] == method) & (results["setting"] == setting_of(target))]

    def values(metric: str) -> pd.Series:
        return rows.loc[rows["metric"] == metric, "value"]

    return [
        LABELS[method],
        "half of the steps" if method in PRETRAINED else "no",
        "–" if target is None else f"{target:.0%}",
        mean_std(values("accuracy")),
        mean_std(values("class_accuracy")),
        mean_std(values("macs") / 1e3, 1),
        f"{1 - values('macs_fraction').mean():.0%}",
        mean_std(values("params") / 1e3, 1),
        f"{speedup:.2f}",
    ]


def frontier(results: pd.DataFrame, params: PointsParams) -> Figure:
    """Accuracy over the fraction of FLOPs, mean and standard deviation over seeds."""
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    wide = results.pivot_table(
        index=["method", "setting", "seed"], columns="metric", values="value"
    ).reset_index()
    for method in params.methods:
        points = (
            wide[wide["method"] == method]
            .groupby("setting")[["macs_fraction", "accuracy"]]
            .agg(["mean", "std"])
        )
        points = points.sort_values(("macs_fraction", "mean"))
        axes.errorbar(
            points["macs_fraction", "mean"], points["accuracy", "mean"], points["accuracy", "std"], marker="o", ms=3,
            capsize=2, label=method, lw=2.2 if method == "chex" else 1,
        )  # fmt: skip
    axes.axhline(
        wide.loc[wide["method"] == "dense", "accuracy"].mean(), color="black", ls=":", lw=1, label="dense"
    )
    axes.set(
        xlabel="FLOPs, fraction of dense",
        ylabel="accuracy %",
        title=f"PointNet, {TITLES[params.data.name]} ({params.scale} scale)",
    )
    axes.legend(ncols=2)
    return figure


def width_history(widths: pd.DataFrame, params: PointsParams) -> Figure:
    """Active share of every layer's channels over training, of the first seed's CHEX run at the smallest target."""
    target = min(params.prune.flops)
    run = widths[
        (widths["method"] == "chex") & (widths["target"] == target) & (widths["seed"] == params.seeds[0])
    ]
    run = run.set_index("step").drop(columns=["method", "target", "seed"])
    figure = Figure(figsize=(6, 3))
    axes = figure.subplots()
    for layer in run.columns:
        axes.step(
            [*run.index, params.recipe.steps], [*run[layer], run[layer].iloc[-1]] / run[layer].iloc[0],
            where="post", label=layer, lw=1,
        )  # fmt: skip
    axes.set(
        xlabel="step",
        ylabel="active / all channels",
        ylim=(0, 1.05),
        title=f"CHEX, FLOPs {target:.0%}: widths of the layers",
    )
    axes.legend(ncols=2)
    return figure


if __name__ == "__main__":
    run(main)
