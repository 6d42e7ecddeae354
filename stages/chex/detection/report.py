"""chex-detection: the tables, the claims' verdicts and the figures.

Reads `runs/chex-detection/<scale>/evaluate/` and the slim detectors in `prune/`. Writes
`reports/chex-detection/<scale>/`: `results.parquet`, `table.md`, `claims.md`, `claims.json`, figures, and
`timings.json`: latencies, kept from the last run for what was measured on the same kind of machine, so that running
again changes no byte.
"""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from stages.chex.detection.cells import network_of, setting_of
from stages.chex.detection.claims import NAMES, check_claims
from stages.chex.detection.evaluate import TABLES
from stages.chex.detection.networks import BODY, build
from stages.chex.detection.params import DetectionParams, DetectorName, MethodName
from stages.chex.latency import latency_ratio
from stages.chex.measures import structure_key
from stages.common.report.figures import write_svg
from stages.common.report.tables import markdown_table, mean_std
from stages.common.report.timings import Timings
from stages.common.report.write import report_folder, write_report
from stages.common.results import published, read_parquet
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, run

Speedups = dict[
    tuple[DetectorName, MethodName, float], tuple[float, float]
]  # of the body, of the whole detector
LABELS: dict[str, str] = {
    "dense": "dense",
    "uniform": "uniform widths, from scratch",
    "l1": "magnitude (L1), fine-tuned",
    "chex": "**CHEX**",
    "chex-no-regrow": "CHEX, no regrow (gradual pruning)",
    "chex-uniform-random": "CHEX, uniform widths and random regrow (as released for Mask R-CNN)",
}
METRICS: dict[DetectorName, tuple[str, ...]] = {
    "ssd": ("bbox_AP", "bbox_AP50", "bbox_AP75"),
    "mask-rcnn": ("bbox_AP", "bbox_AP50", "bbox_AP75", "segm_AP", "segm_AP50", "segm_AP75"),
}
PRETRAINED = ("l1",)  # half of their steps train the dense detector first
LATENCY_BATCH = 32
LATENCY_REPEATS = 21


def main() -> None:
    """Write the report of the active scale."""
    params = load_params(DetectionParams, "chex-detection")
    runs = Path("runs/chex-detection") / params.scale
    networks = [runs / "prune" / f"{method}-{params.seeds[0]}" for method in params.methods]
    with Stage("chex-detection", params, [runs / "evaluate", *networks]):
        results = read_parquet(runs / "evaluate" / "results.parquet")
        widths = read_parquet(runs / "evaluate" / "widths.parquet")
        timings = Timings(report_folder("chex-detection", params.scale) / "timings.json")
        speedups = measure_speedups(params, runs, timings)

        def draw(output: Path) -> None:
            for detector in params.detectors:
                write_svg(frontier(results, detector, params), output / f"ap-against-flops-{detector}.svg")
                if "chex" in params.methods:
                    write_svg(
                        width_history(widths, detector, params),
                        output / f"widths-over-training-{detector}.svg",
                    )

        table = table_markdown(results, speedups, timings, params)
        write_report(
            "chex-detection", params.scale, results, table, check_claims(results, params), draw, timings
        )


def measure_speedups(params: DetectionParams, runs: Path, timings: Timings) -> Speedups:
    """Dense over slim latency of the first seed's bodies and of its whole SSDs, on one CPU thread."""
    seed, cpu = params.seeds[0], torch.device("cpu")
    jobs = [(d, m, t) for d, s in params.detectors.items() for m in params.methods for t in s.prune.flops]
    speedups: Speedups = {}
    with progress("chex-detection latency", len(jobs)) as bar:
        for detector, method, target in jobs:
            dense = build(detector, params.detectors[detector].net, params.classes, seed, cpu)
            network, _ = network_of(detector, method, target, params, runs, seed, cpu)
            shape = (LATENCY_BATCH, *dense.example.shape[1:])
            ratios = [
                _speedup(
                    f"{detector} {part}",
                    dense.model.get_submodule(part),
                    network.get_submodule(part),
                    shape,
                    timings,
                )
                for part in (BODY[detector], "net" if detector == "ssd" else BODY[detector])
            ]
            speedups[detector, method, target] = (ratios[0], ratios[1])
            bar.advance()
    return speedups


def _speedup(name: str, dense: nn.Module, slim: nn.Module, shape: tuple[int, ...], timings: Timings) -> float:
    def measure() -> list[float]:
        return [latency_ratio(dense, slim, shape, LATENCY_REPEATS).ratio]

    return timings.measure(f"{name} batch {LATENCY_BATCH} {structure_key(slim)}", measure)[0]


def table_markdown(
    results: pd.DataFrame, speedups: Speedups, timings: Timings, params: DetectionParams
) -> str:
    """`table.md`: T2 and T3, ours and the published rows."""
    scale = "small scale, not the paper's setting" if params.scale == "quick" else f"{params.scale} scale"
    data = "generated scenes" if params.data.kind == "scenes" else "COCO's layout, by folder"
    parts = [f"# CHEX on detectors, {params.scale} scale\n"]
    for detector, settings in params.detectors.items():
        rows = results[results["table"] == TABLES[detector]]
        metrics = METRICS[detector]
        header = [
            "method", "pre-trained?", "body FLOPs target", *(name.replace("_", " ") for name in metrics),
            "body MMACs", "reduction", "whole MMACs", "params (k)", "latency of the body, dense / slim",
        ]  # fmt: skip
        if detector == "ssd":
            header.append("latency of the whole")
        else:
            header.remove("whole MMACs")
        lines = [_line(rows, detector, "dense", None, (1.0, 1.0))]
        for target in sorted(settings.prune.flops, reverse=True):
            lines += [_line(rows, detector, m, target, speedups[detector, m, target]) for m in params.methods]
        parts.append(
            f"## {TABLES[detector]} {NAMES[detector]}, {data} ({scale})\n\n"
            f"Body {settings.net}, {settings.recipe.steps} steps of {settings.recipe.batch} images for every row; mean ± "
            f"std over n = {len(params.seeds)} seeds; the last weights. Only the body is pruned, as in the paper; FLOPs are "
            f"its multiply-accumulates. Latency: of seed {params.seeds[0]}, median of {LATENCY_REPEATS} interleaved runs, "
            f"batch {LATENCY_BATCH}, one thread, {timings.machine}; above 1 is faster than dense.\n\n"
            + markdown_table(header, lines)
        )
    parts.append(_published(params.detectors))
    return "\n".join(parts)


def _line(
    rows: pd.DataFrame, detector: DetectorName, method: str, target: float | None, speedup: tuple[float, float]
) -> list[str]:  # fmt: skip
    chosen = rows[(rows["method"] == method) & (rows["setting"] == setting_of(target))]

    def values(metric: str) -> pd.Series:
        return chosen.loc[chosen["metric"] == metric, "value"]

    whole = detector == "ssd"
    return [
        LABELS[method],
        "half of the steps" if method in PRETRAINED else "no",
        "–" if target is None else f"{target:.0%}",
        *(mean_std(values(metric), 1) for metric in METRICS[detector]),
        mean_std(values("body_macs") / 1e6, 2),
        f"{1 - values('body_macs_fraction').mean():.0%}",
        *([mean_std(values("macs") / 1e6, 2)] if whole else []),
        mean_std(values("params") / 1e3, 1),
        f"{speedup[0]:.2f}",
        *([f"{speedup[1]:.2f}"] if whole else []),
    ]


def _published(detectors: Iterable[DetectorName]) -> str:
    """The published rows of the tables, one line per method and setting."""
    table = published("chex")
    parts = ["## Published: COCO (the paper's setting; not comparable with the small tables above)\n"]
    parts.append("From `reports/published/chex.csv`, which gives the source of each number.\n")
    for detector in detectors:
        rows = table[table["table"].str.startswith(TABLES[detector])]
        wide = rows.pivot_table(
            index=["method", "setting"], columns="metric", values="value", sort=False, aggfunc="first"
        )
        lines = [
            [*map(str, index), *("" if pd.isna(value) else f"{value:g}" for value in row)]
            for index, row in zip(wide.index, wide.to_numpy(), strict=True)
        ]
        parts.append(f"### {rows['table'].iloc[0]}\n")
        parts.append(markdown_table(["method", "setting", *wide.columns], lines))
    return "\n".join(parts)


def frontier(results: pd.DataFrame, detector: DetectorName, params: DetectionParams) -> Figure:
    """Box AP over the fraction of the body's FLOPs, mean and standard deviation over seeds."""
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    rows = results[results["table"] == TABLES[detector]]
    wide = rows.pivot_table(
        index=["method", "setting", "seed"], columns="metric", values="value"
    ).reset_index()
    for method in params.methods:
        points = (
            wide[wide["method"] == method]
            .groupby("setting")[["body_macs_fraction", "bbox_AP"]]
            .agg(["mean", "std"])
        )
        points = points.sort_values(("body_macs_fraction", "mean"))
        axes.errorbar(
            points["body_macs_fraction", "mean"], points["bbox_AP", "mean"], points["bbox_AP", "std"], marker="o", ms=3,
            capsize=2, label=method, lw=2.2 if method == "chex" else 1,
        )  # fmt: skip
    axes.axhline(
        wide.loc[wide["method"] == "dense", "bbox_AP"].mean(), color="black", ls=":", lw=1, label="dense"
    )
    axes.set(
        xlabel="FLOPs of the body, fraction of dense",
        ylabel="box AP",
        title=f"{NAMES[detector]} ({params.scale} scale)",
    )
    axes.legend()
    return figure


def width_history(widths: pd.DataFrame, detector: DetectorName, params: DetectionParams) -> Figure:
    """Active share of every layer's channels over training, of the first seed's CHEX run at the smallest target."""
    settings = params.detectors[detector]
    target, seed = min(settings.prune.flops), params.seeds[0]
    chosen = widths[
        (widths["detector"] == detector) & (widths["method"] == "chex") & (widths["seed"] == seed)
    ]
    run = chosen[chosen["target"] == target].pivot_table(
        index="step", columns="group", values="active", sort=False
    )
    figure = Figure(figsize=(6, 3.5))
    axes = figure.subplots()
    for group in run.columns:
        share = run[group] / run[group].iloc[0]
        label = str(group).removeprefix(f"{BODY[detector]}.")
        axes.step(
            [*run.index, settings.recipe.steps], [*share, share.iloc[-1]], where="post", label=label, lw=1
        )
    axes.set(
        xlabel="step", ylabel="active / all channels", ylim=(0, 1.05),
        title=f"CHEX, {NAMES[detector]}, body FLOPs {target:.0%}: widths of the layers",
    )  # fmt: skip
    if len(run.columns) <= 12:
        axes.legend(ncols=3)
    return figure


if __name__ == "__main__":
    run(main)
