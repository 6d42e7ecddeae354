"""chex: the comparison tables, the claims' verdicts and the figures.

Reads `runs/chex/<scale>/evaluate/` and the slim networks in `prune/`. Writes `reports/chex/<scale>/`:
`results.parquet`, `table.md`, `claims.md`, `claims.json`, figures, and `timings.json`: latencies, kept from
the last run for what was measured on the same kind of machine, so that running again changes no byte.
"""

import hashlib
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from stages.chex.cells import dense_model, example, setting_of
from stages.chex.claims import TITLES, check_claims
from stages.chex.figures import draw_figures
from stages.chex.latency import latency_ratio
from stages.chex.method.allocation import sparsity_for_macs, uniform_channels
from stages.chex.method.channel_groups import find_channel_groups
from stages.chex.method.flops import MacModel
from stages.chex.method.resnet import build
from stages.chex.method.slim import load_slim, slim
from stages.chex.params import ChexParams, DataName
from stages.common.report.tables import markdown_table, mean_std
from stages.common.report.timings import Timings
from stages.common.report.write import report_folder, write_report
from stages.common.results import published, read_parquet
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, run

LABELS = {
    "dense": "dense",
    "uniform": "uniform widths, from scratch",
    "random": "random pruning, fine-tuned",
    "l1": "magnitude (L1), fine-tuned",
    "bn": "network slimming (BN scale), fine-tuned",
    "chex": "**CHEX**",
    "chex-prune-once": "CHEX, prune only (once, early)",
    "chex-no-regrow": "CHEX, no regrow (gradual pruning)",
    "chex-random-regrow": "CHEX, random regrow",
    "chex-no-realloc": "CHEX, no re-allocation",
}
PRETRAINED = ("random", "l1", "bn")  # half of their steps train the dense network first
LATENCY_BATCH = 64
LATENCY_REPEATS = 31
CLAIM_MACS = 0.22  # of ResNet-50's multiply-accumulates, in the claim about its latency


def main() -> None:
    """Write the report of the active scale."""
    params = load_params(ChexParams, "chex")
    runs = Path("runs/chex") / params.scale
    networks = [runs / "prune" / f"{method}-{params.seeds[0]}" for method in params.methods]
    with Stage("chex", params, [runs / "evaluate", *networks]):
        results = read_parquet(runs / "evaluate" / "results.parquet")
        widths = read_parquet(runs / "evaluate" / "widths.parquet")
        timings = Timings(report_folder("chex", params.scale) / "timings.json")
        speedups = measure_speedups(params, runs, timings)
        claims = check_claims(results, widths, resnet50_speedup(timings), params)
        table = table_markdown(results, speedups, timings, params)
        write_report(
            "chex",
            params.scale,
            results,
            table,
            claims,
            lambda output: draw_figures(results, widths, params, output),
            timings,
        )


def structure_key(network: nn.Module) -> str:
    """Digest of what a network's speed depends on: the names and shapes of its parameters."""
    shapes = [(name, tuple(parameter.shape)) for name, parameter in network.named_parameters()]
    return hashlib.sha256(repr(shapes).encode()).hexdigest()[:16]


def measure_speedups(
    params: ChexParams, runs: Path, timings: Timings
) -> dict[tuple[DataName, str, float], float]:
    """Dense over slim latency of the first seed's networks, batch 64, one thread: (data, method, target) -> ratio."""
    torch.set_num_threads(1)
    seed = params.seeds[0]
    speedups: dict[tuple[DataName, str, float], float] = {}
    jobs = [(d, m, t) for d in params.data for m in params.methods for t in params.prune.flops]
    with progress("chex latency", len(jobs)) as bar:
        for data, method, target in jobs:
            dense, _ = dense_model(data, params.data[data], seed, torch.device("cpu"))
            network = load_slim(runs / "prune" / f"{method}-{seed}" / f"{data}-{target:g}.safetensors")
            shape = tuple(example(data, LATENCY_BATCH).shape)
            speedups[data, method, target] = timings.measure(
                f"{data} batch {LATENCY_BATCH} {structure_key(network)}",
                lambda d=dense, n=network, s=shape: [latency_ratio(d.eval(), n, s, LATENCY_REPEATS).ratio],  # type: ignore[misc]
            )[0]
            bar.advance()
    return speedups


def resnet50_speedup(timings: Timings) -> tuple[float, float]:
    """Dense over slim latency of ResNet-50 at 224 with uniform widths, batch 1, and its fraction of the MACs."""

    def measure() -> list[float]:
        x_1CHW = torch.zeros(1, 3, 224, 224)
        dense = build("resnet50", 1000).eval()
        groups, _ = find_channel_groups(dense, x_1CHW)
        macs = MacModel(dense, groups, x_1CHW)
        sizes = [group.units for group in groups]
        sparsity = sparsity_for_macs(lambda s: uniform_channels(sizes, s), macs, CLAIM_MACS * macs(sizes))
        counts = uniform_channels(sizes, sparsity)
        masks = {g.name: torch.arange(g.units) < n for g, n in zip(groups, counts, strict=True)}
        network = slim(dense, groups, masks)
        return [
            latency_ratio(dense, network, tuple(x_1CHW.shape), LATENCY_REPEATS).ratio,
            macs(counts) / macs(sizes),
        ]

    factor, fraction = timings.measure(f"resnet50 at 224, uniform {CLAIM_MACS:g}", measure)
    return factor, fraction


def table_markdown(
    results: pd.DataFrame,
    speedups: dict[tuple[DataName, str, float], float],
    timings: Timings,
    params: ChexParams,
) -> str:
    """`table.md`: our rows per data set, selection criteria, and the published rows."""
    scale = "small scale, not the paper's setting" if params.scale == "quick" else f"{params.scale} scale"
    parts = [f"# CHEX: channel exploration, {params.scale} scale\n"]
    for data, recipe in params.data.items():
        rows = results[(results["data"] == data) & (results["table"] == "T1")]
        header = [
            "method", "pre-trained?", "FLOPs target", "top-1 %", "FLOPs (MMACs)", "reduction", "params (k)",
            "latency, dense / slim",
        ]  # fmt: skip
        lines = [_line(rows, "dense", None, 1.0)]
        for target in sorted(params.prune.flops, reverse=True):
            lines += [
                _line(rows, method, target, speedups[data, method, target]) for method in params.methods
            ]
        parts.append(
            f"## {TITLES[data]} ({scale})\n\n"
            f"{recipe.net} ResNet, {recipe.steps} steps of {recipe.batch} for every row; mean ± std over "
            f"n = {len(params.seeds)} seeds. FLOPs are multiply-accumulates of convolution and linear layers of the slim "
            f"network. Latency: the physically slim network of seed {params.seeds[0]}, median of {LATENCY_REPEATS} "
            f"interleaved runs, batch {LATENCY_BATCH}, one thread, {timings.machine}; above 1 is faster than dense.\n\n"
            + markdown_table(header, lines)
        )
    parts.append(_criteria(results, params))
    parts.append(_published())
    return "\n".join(parts)


def _line(rows: pd.DataFrame, method: str, target: float | None, speedup: float) -> list[str]:
    chosen = rows[(rows["method"] == method) & (rows["setting"] == setting_of(target))]

    def values(metric: str) -> pd.Series:
        return chosen.loc[chosen["metric"] == metric, "value"]

    return [
        LABELS[method],
        "half of the steps" if method in PRETRAINED else "no",
        "–" if target is None else f"{target:.0%}",
        mean_std(values("top1")),
        mean_std(values("macs") / 1e6, 3),
        f"{1 - values('macs_fraction').mean():.0%}",
        mean_std(values("params") / 1e3, 1),
        f"{speedup:.2f}",
    ]


def _criteria(results: pd.DataFrame, params: ChexParams) -> str:
    rows = results[results["table"] == "T6"]
    names = ["random", "l1", "css", "css_greedy", "bound"]
    fractions = sorted({metric.partition("@")[2] for metric in rows["metric"]})
    lines = [
        [f"{TITLES[data]}, keep {float(fraction):.0%}"]
        + [
            mean_std(rows.loc[(rows["data"] == data) & (rows["metric"] == f"{name}@{fraction}"), "value"], 3)
            for name in names
        ]
        for data in params.data
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
