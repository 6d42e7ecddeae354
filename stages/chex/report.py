"""chex: the comparison tables, the claims' verdicts and the figures.

Reads `runs/chex/<scale>/evaluate/` and the slim networks in `prune/`. Writes `reports/chex/<scale>/`:
`results.parquet`, `table.md`, `claims.md`, `claims.json`, figures, and `timings.json`: latencies, kept from
the last run for what was measured on the same kind of machine, so that running again changes no byte.
"""

import pandas as pd
import torch

from stages.chex.claims import TITLES, check_claims
from stages.chex.figures import draw_figures
from stages.chex.latency import latency_ratio
from stages.chex.method.allocation import sparsity_for_macs, uniform_channels
from stages.chex.method.resnet import build
from stages.chex.method.slim import slim
from stages.chex.study import explored
from stages.chex.tables import (
    LATENCY_REPEATS,
    PARAMS,
    REDUCTION,
    Speedups,
    comparison_table,
    latency_note,
    measure_speedups,
    number,
    scale_note,
)
from stages.chex.training import ImageStudy
from stages.common.report.tables import markdown_table, mean_std
from stages.common.report.timings import Timings
from stages.common.report.write import report_folder, write_report
from stages.common.results import published, read_parquet
from stages.common.stage.run import Stage, run

COLUMNS = (
    number("top-1 %", "top1", 2), number("FLOPs (MMACs)", "macs", 3, 1e6), REDUCTION, PARAMS,
)  # fmt: skip
TIMED = {"": "latency, dense / slim"}
LATENCY_BATCH = 64
CLAIM_MACS = 0.22  # of ResNet-50's multiply-accumulates, in the claim about its latency


def main() -> None:
    """Write the report of the active scale."""
    study = ImageStudy()
    networks = [study.cell(method, study.seeds[0]) for method in study.methods]
    with Stage("chex", study.section, [study.runs / "evaluate", *networks]):
        results = read_parquet(study.runs / "evaluate" / "results.parquet")
        widths = read_parquet(study.runs / "evaluate" / "widths.parquet")
        timings = Timings(report_folder("chex", study.scale) / "timings.json")
        speedups = measure_speedups(study, dict.fromkeys(study.parts, TIMED), LATENCY_BATCH, timings)
        claims = check_claims(results, widths, resnet50_speedup(timings), study.params)
        table = table_markdown(study, results, speedups, timings)
        write_report(
            "chex",
            study.scale,
            results,
            table,
            claims,
            lambda output: draw_figures(results, widths, study.params, output),
            timings,
        )


def resnet50_speedup(timings: Timings) -> tuple[float, float]:
    """Dense over slim latency of ResNet-50 at 224 with uniform widths, batch 1, and its fraction of the MACs."""

    def measure() -> list[float]:
        x_1CHW = torch.zeros(1, 3, 224, 224)
        net = explored(build("resnet50", 1000).eval(), "", x_1CHW)
        sizes = [group.units for group in net.groups]
        budget = CLAIM_MACS * net.dense_macs
        counts = uniform_channels(
            sizes, sparsity_for_macs(lambda s: uniform_channels(sizes, s), net.macs, budget)
        )
        masks = {g.name: torch.arange(g.units) < n for g, n in zip(net.groups, counts, strict=True)}
        small = slim(net.model, net.groups, masks)
        ratio = latency_ratio(net.model, small, tuple(x_1CHW.shape), LATENCY_REPEATS).ratio
        return [ratio, net.macs(counts) / net.dense_macs]

    factor, fraction = timings.measure(f"resnet50 at 224, uniform {CLAIM_MACS:g}", measure)
    return factor, fraction


def table_markdown(study: ImageStudy, results: pd.DataFrame, speedups: Speedups, timings: Timings) -> str:
    """`table.md`: our rows per data set, selection criteria, and the published rows."""
    parts = [f"# CHEX: channel exploration, {study.scale} scale\n"]
    for data, recipe in study.params.data.items():
        rows = results[(results["data"] == data) & (results["table"] == "T1")]
        parts.append(
            f"## {TITLES[data]} ({scale_note(study.scale)})\n\n"
            f"{recipe.net} ResNet, {recipe.steps} steps of {recipe.batch} for every row; mean ± std over "
            f"n = {len(study.seeds)} seeds. FLOPs are multiply-accumulates of convolution and linear layers of the slim "
            f"network. {latency_note(study, LATENCY_BATCH, timings)}\n\n"
            + comparison_table(study, data, rows, COLUMNS, speedups, TIMED)
        )
    parts.append(_criteria(study, results))
    parts.append(_published())
    return "\n".join(parts)


def _criteria(study: ImageStudy, results: pd.DataFrame) -> str:
    rows = results[results["table"] == "T6"]
    names = ["random", "l1", "css", "css_greedy", "bound"]
    fractions = sorted({metric.partition(" at ")[2] for metric in rows["metric"]})
    lines = [
        [f"{TITLES[data]}, keep {float(fraction):.0%}"]
        + [
            mean_std(
                rows.loc[(rows["data"] == data) & (rows["metric"] == f"{name} at {fraction}"), "value"], 3
            )
            for name in names
        ]
        for data in study.params.data
        for fraction in fractions
    ]
    header = ["layers of", "random", "L1", "CSS (leverage)", "CSS (greedy)", "SVD bound"]
    return (
        "## Pruning criterion: relative weight-reconstruction residual on trained dense networks (T6)\n\n"
        "Mean over the tall layers (at least as many weights per channel as channels); lower is better.\n\n"
        + markdown_table(header, lines)
    )


def _published() -> str:
    table = published("chex")
    rows = table[table["table"] == "T1 ImageNet classification"]
    wide = rows.pivot_table(
        index=["method", "setting"], columns="metric", values="value", sort=False, aggfunc="first"
    ).reset_index()
    wide = wide[wide["top1"].notna()]
    lines = [
        [row.method, row.setting, f"{row.top1:.1f}", "" if pd.isna(row.flops) else f"{row.flops:g}",
         "" if pd.isna(row.flops_reduction) else f"{row.flops_reduction:g}"]
        for row in wide.itertuples()
    ]  # fmt: skip
    return (
        "## Published: ImageNet (the paper's setting; not comparable with the small tables above)\n\n"
        "From `reports/published/chex.csv`, which gives the source of each number.\n\n"
        + markdown_table(["method", "network", "top-1 %", "FLOPs (GMACs)", "reduction %"], lines)
    )


if __name__ == "__main__":
    run(main)
