"""zendet: the comparison tables, the claims' verdicts and the figures.

Reads the results of `runs/zendet/<scale>/{evaluate,official,score-check}/` and the structures in `train/`. Writes
`reports/zendet/<scale>/`: `results.parquet`, `table.md`, `claims.md`, `claims.json`, figures, and `timings.json`:
seconds of the searches and milliseconds of the backbones on this machine's CPU.
"""

import time
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from scipy import stats

from stages.common.report.tables import markdown_table, mean_std
from stages.common.report.timings import Timings
from stages.common.report.write import report_folder, write_report
from stages.common.results import published, read_parquet
from stages.common.stage.params import load_params
from stages.common.stage.run import Stage, run
from stages.zendet.cells import ABLATION
from stages.zendet.claims import check_claims, per_seed, published_values, score_table
from stages.zendet.figures import draw_figures
from stages.zendet.method.cost import count_flops
from stages.zendet.method.latency import LatencyTable, network_queries, profile_cpu
from stages.zendet.method.masternet import MasterNet
from stages.zendet.method.structure import Structure, read_structure
from stages.zendet.official_search import official_search
from stages.zendet.params import ZendetParams

LABELS = {
    "resnet": "ResNet in this encoding",
    "entropy": "**searched (maximum entropy)**",
    "min-entropy": "control (minimum entropy)",
    "random": "random walk, best entropy",
    "zen": "Zen-score",
    "flops": "FLOPs as the score",
    "params": "parameters as the score",
}
HEADS = {"gfl": "GFLV2", "fcos": "FCOS", "retinanet": "RetinaNet"}
PARTS = ("evaluate", "official", "score-check")
LATENCY_BATCH, REPEATS = 8, 9
LATENCY_SIZE = 256  # the largest side of the CPU measurement


def main() -> None:
    """Write the report of the active scale."""
    params = load_params(ZendetParams, "zendet")
    runs = Path("runs/zendet") / params.scale
    trained = [runs / "train" / backbone for backbone in params.backbones]
    with Stage("zendet", params, [*(runs / part for part in PARTS), *trained]):
        results = pd.concat(
            [read_parquet(runs / part / "results.parquet") for part in PARTS], ignore_index=True
        )
        structures: dict[str, Structure] = {
            backbone: read_structure(folder / f"structure-{params.seeds[0]}.txt")
            for backbone, folder in zip(params.backbones, trained, strict=True)
        }
        timings = Timings(report_folder("zendet", params.scale) / "timings.json")
        claims = check_claims(results, params)
        table = table_markdown(results, structures, timings, params)
        write_report(
            "zendet",
            params.scale,
            results,
            table,
            claims,
            lambda output: draw_figures(results, params, output),
            timings,
        )


def table_markdown(
    results: pd.DataFrame, structures: dict[str, Structure], timings: Timings, params: ZendetParams
) -> str:
    """`table.md`: all tables of the card that this scale fills."""
    return "\n".join(
        [
            f"# ZenDet / MAE-DET: backbones from a training-free search, {params.scale} scale\n",
            _detectors(results, params),
            _ablation(results, params),
            _strategies(results, params),
            _search_cost(results, timings, params),
            _latency(results, structures, timings, params),
            _published(),
        ]
    )


def _detectors(results: pd.DataFrame, params: ZendetParams) -> str:
    """T1: AP of every backbone under every head."""
    note = "small scale, not the paper's setting" if params.scale == "quick" else f"{params.scale} scale"
    data = f"generated scenes of {params.image_size} px" if params.data.kind == "scenes" else "COCO"
    sides = "16 and 32" if params.data.kind == "scenes" else "32 and 96"
    lines = []
    for head in params.heads:
        for backbone in params.backbones:
            values = {
                m: per_seed(results, "T1", backbone, head, m)
                for m in ("flops", "params", "layers", "entropy", "AP", "AP50", "AP_S", "AP_M", "AP_L")
            }
            lines.append(
                [
                    f"{HEADS[head]}, {LABELS.get(backbone, backbone)}",
                    mean_std(values["flops"], 1),
                    mean_std(values["params"], 3),
                    mean_std(values["layers"], 0),
                    mean_std(values["entropy"], 0),
                    *(mean_std(values[m], 1) for m in ("AP", "AP50", "AP_S", "AP_M", "AP_L")),
                    f"{params.train.steps} steps",
                ]
            )
    header = [
        "head, backbone", "FLOPs (M)", "params (M)", "layers", "Z", "AP", "AP50", "AP_S", "AP_M", "AP_L", "trained",
    ]  # fmt: skip
    return (
        f"## Detectors (T1; {note})\n\n"
        f"AP % on {data}, from scratch; mean ± std over n = {len(params.seeds)} seeds, each with a search of its own. "
        f"Sides between small, medium and large: {sides} px. FLOPs by the official formula at {params.image_size} px; Z is "
        "the analytic entropy score, alpha (0,0,1,1,6).\n\n" + markdown_table(header, lines)
    )


def _ablation(results: pd.DataFrame, params: ZendetParams) -> str:
    """T2: what the mutation, the alphas and the closed form change."""
    names = ["main", *(job.name for job in ABLATION)]
    lines = [
        [
            "coarse moves, alpha 0 0 1 1 6, analytic" if name == "main" else name,
            *(
                mean_std(per_seed(results, "T2", name, "search", m), d)
                for m, d in (("entropy", 1), ("flops", 2), ("params", 3), ("layers", 0))
            ),
        ]
        for name in names
    ]
    return (
        f"## Search ablation (T2)\n\nOne change a row, {params.search.evaluations} evaluations; Z as above whatever was "
        "maximised.\n\n" + markdown_table(["search", "Z", "FLOPs (M)", "params (M)", "layers"], lines)
    )


def _strategies(results: pd.DataFrame, params: ZendetParams) -> str:
    """T3: what other scores find at the same budget, and how they rank random structures."""
    first = f"{params.score_check.sizes[0]} px"
    table, head = score_table(results, first), params.heads[0]
    lines = []
    for strategy in params.strategies:
        own = {"entropy": "analytic", "zen": "zen", "flops": "flops", "params": "params"}.get(strategy)
        tau = "–" if own is None else f"{stats.kendalltau(table[own], table['monte carlo']).statistic:.2f}"
        lines.append(
            [
                LABELS.get(strategy, strategy),
                *(
                    mean_std(per_seed(results, "T3", strategy, "search", m), d)
                    for m, d in (
                        ("evaluations", 0),
                        ("entropy", 1),
                        ("flops", 2),
                        ("params", 3),
                        ("layers", 0),
                    )
                ),
                tau,
                mean_std(per_seed(results, "T1", strategy, head, "AP"), 1),
            ]
        )
    header = ["maximised", "evaluations", "Z", "FLOPs (M)", "params (M)", "layers", "tau", "AP"]
    return (
        "## Proxies (T3)\n\nWhat each score finds at the reference's FLOPs and layers. `tau`: Kendall's tau-b with the "
        f"Monte-Carlo entropy over {len(table)} random structures. AP: {HEADS[head]}, where trained.\n\n"
        + markdown_table(header, lines)
    )


def _search_cost(results: pd.DataFrame, timings: Timings, params: ZendetParams) -> str:
    """T4: the authors' setting."""
    evaluations = params.search.official_evaluations

    def take() -> list[float]:
        start = time.perf_counter()
        official_search("entropy", params.search.official_seeds[0], evaluations).run()
        return [time.perf_counter() - start]

    seconds = timings.measure(f"official search, {evaluations} evaluations, one process", take)[0]
    lines = [
        [
            {"entropy": "**search**", "random": "random walk"}[method],
            *(
                mean_std(per_seed(results, "T4", method, "official budget", m), d)
                for m, d in (
                    ("evaluations", 0), ("distinct", 0), ("score", 1), ("flops", 2), ("params", 2), ("layers", 0),
                )
            ),
            f"{seconds:.2f} ({1e6 * seconds / evaluations:.0f} us each)" if method == "entropy" else "–",
        ]
        for method in ("entropy", "random")
    ]  # fmt: skip
    header = [
        "",
        "evaluations",
        "distinct",
        "score (closed form)",
        "FLOPs (G)",
        "params (M)",
        "layers",
        "seconds",
    ]
    return (
        "## The authors' search (T4)\n\n18.8 GFLOPs at 480 px, 91 layers, population 256, their initial structure; "
        f"n = {len(params.search.official_seeds)} seeds. Published: one GPU day. One process on {timings.machine}.\n\n"
        + markdown_table(header, lines)
    )


def _latency(
    results: pd.DataFrame, structures: dict[str, Structure], timings: Timings, params: ZendetParams
) -> str:
    """T5: published backbones (counts, predicted V100 time where there is a table), trained ones on this CPU."""
    names = ("ResNet-50-like", "MAE-DET-S", "MAE-DET-M", "MAE-DET-L")
    columns = ("published flops", "params", "layers", "closed-form score", "analytic score", "predicted ms")
    values = {column: published_values(results, column) for column in columns}
    lines = []
    for name in names:
        ms = values["predicted ms"]
        lines.append(
            [
                name,
                f"{values['published flops'][name]:.1f}",
                f"{values['params'][name]:.0f}",
                f"{values['layers'][name]:.0f}",
                f"{values['closed-form score'][name]:.1f}",
                f"{values['analytic score'][name]:.1f}",
                f"{ms[name]:.3f}" if name in ms else "–",
            ]
        )
    header = [
        "backbone",
        "FLOPs (G, 1280x800)",
        "params",
        "layers",
        "closed form",
        "analytic",
        "V100 ms, predicted",
    ]
    text = (
        "## Published backbones and latency (T5)\n\nCounted from the published structures; FLOPs as published "
        "(convolutions and 2 per batch-norm output, 1 for the ResNet). Scores at 480 px.\n\n"
        + markdown_table(header, lines)
    )
    side = min(params.image_size, LATENCY_SIZE)
    measured = []
    for name, structure in structures.items():
        key = f"{name} {count_flops(structure, side):.0f} at {side} px, batch {LATENCY_BATCH}"
        predicted, real = timings.measure(key, lambda s=structure: cpu_latency(s, side))  # type: ignore[misc]
        measured.append(
            [
                LABELS.get(name, name),
                f"{count_flops(structure, side) / 1e6:.1f}",
                f"{predicted:.1f}",
                f"{real:.1f}",
            ]
        )
    return text + (
        f"\n**Trained backbones on this CPU** (seed {params.seeds[0]}, {side} px, batch {LATENCY_BATCH}, one thread, "
        f"{timings.machine}); predicted is the sum over separately measured convolutions.\n\n"
        + markdown_table(["backbone", "FLOPs (M)", "predicted ms", "measured ms"], measured)
    )


@torch.no_grad()
def cpu_latency(structure: Structure, side: int) -> list[float]:
    """Predicted and measured milliseconds of a batch, one thread."""
    torch.set_num_threads(1)
    table = LatencyTable(profile_cpu(network_queries(structure, side), LATENCY_BATCH))
    net = MasterNet(structure).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(LATENCY_BATCH, 3, side, side).to(memory_format=torch.channels_last)
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        net(x)
        seconds.append(time.perf_counter() - start)
    return [table.predict_network(structure, side, LATENCY_BATCH), 1e3 * median(seconds)]


def _published() -> str:
    rows = published("zendet")
    rows = rows[(rows["table"] == "main_gflv2") & (rows["source"] == "readme")]
    wide = rows.pivot(index="method", columns="metric", values="value")
    columns = ["backbone_flops_1280x800", "backbone_params", "AP", "AP_S", "AP_M", "AP_L"]
    lines = [[name, *(f"{wide.loc[name, c]:.1f}" for c in columns)] for name in rows["method"].unique()]
    return (
        "## Published (the paper's setting; not comparable with the small tables above)\n\n"
        "COCO val2017, GFLV2, from the authors' README (`reports/published/zendet.csv`, which also has the paper's other "
        "heads, recalled and unverified, hence not shown).\n\n"
        + markdown_table(["backbone", "FLOPs (G)", "params (M)", "AP", "AP_S", "AP_M", "AP_L"], lines)
    )


if __name__ == "__main__":
    run(main)
