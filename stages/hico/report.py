"""hico: the comparison tables, the claims' verdicts and the figures.

Reads the results of `runs/hico/<scale>/{evaluate,theory}/`. Writes `reports/hico/<scale>/`: `results.parquet`,
`table.md`, `claims.md`, `claims.json` and figures.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from stages.common.report.tables import markdown_table, mean_std
from stages.common.report.write import write_report
from stages.common.results import published, read_parquet
from stages.common.stage.params import load_params
from stages.common.stage.run import Stage, run
from stages.hico.cells import METHODS
from stages.hico.claims import check_claims, difference, per_seed
from stages.hico.figures import draw_figures
from stages.hico.gradual_theory import SCHEDULES
from stages.hico.params import HicoParams, MethodName, TargetName

PARTS = ("evaluate", "theory")
ACCURACIES = (
    "action linear", "action 1-NN", "action LFT", "action fine-tuned", "topic linear", "topic 1-NN", "topic AUC",
)  # fmt: skip
SWEEP: dict[str, MethodName] = {
    "0 s": "vcl-0", "0.5 s": "vcl-0.5", "1 s": "vcl-1", "5 s": "vcl-5", "10 s": "vcl-10", "unlimited": "simclr",
}  # fmt: skip
TOPIC_ROWS: tuple[MethodName, ...] = (
    "vcl-3-clips", "hico-weight-0.5", "hico", "hico-weight-2", "hico-gamma-0", "hico-gamma-2", "hico-difference",
    "hico-dot", "hico-far-positive",
)  # fmt: skip
COMPONENTS: dict[MethodName, tuple[str, str, str]] = {
    "vcl-1": ("✓", "", ""),
    "vcl-gradual": ("✓", "", "✓"),
    "tcl": ("", "✓", "✓"),
    "hico-fixed": ("✓", "✓", ""),
    "hico": ("✓", "✓", "✓"),
}
WINDOWS = "A linear classifier on sliding windows, merged into segments: a stand-in for the paper's BMN on ActivityNet-1.3"
NETWORK = (
    "Proposals of a boundary-matching network (BMN) on the frozen features, as in the paper; classes by a linear "
    "classifier on the features of the whole video"
)
NOT_RUN = "not run at this scale"


def main() -> None:
    """Write the report of the active scale."""
    params = load_params(HicoParams, "hico")
    runs = Path("runs/hico") / params.scale
    with Stage("hico", params, [runs / part for part in PARTS]):
        parts = [read_parquet(runs / part / "results.parquet") for part in PARTS]
        results = pd.concat(parts, ignore_index=True)
        claims = check_claims(results, params)
        table = table_markdown(results, params)
        write_report(
            "hico", params.scale, results, table, claims, lambda output: draw_figures(results, params, output)
        )


def table_markdown(results: pd.DataFrame, params: HicoParams) -> str:
    """`table.md`: tables A to G of the card, the simulation, and the published numbers."""
    classified = [t for t in params.targets if ((results["data"] == t) & (results["table"] == "A")).any()]
    parts = [
        f"# HiCo: self-supervised learning from untrimmed video, {params.scale} scale\n",
        _setting(results, params),
        *(_main(results, params, target) for target in classified),
        _sweep(results, params),
        _topic(results, params),
        _components(results, params),
        _trimmed(results, params),
        *(_ranks(results, params, target) for target in classified),
        *(_located(results, params, target) for target in params.targets),
        _simulation(results, params),
        _published(),
    ]
    return "\n".join(part for part in parts if part)


def _setting(results: pd.DataFrame, params: HicoParams) -> str:
    small = ", small scale, not the paper's setting" if params.scale == "quick" else ""
    recipe = params.pretrain
    counts = results[results["table"] == "data"].groupby("metric")["value"].max()
    return (
        f"{params.scale} scale{small}: pre-training on {params.untrimmed} video, {params.net}, "
        f"{recipe.length} {recipe.unit} of "
        f"{recipe.batch} videos, clips of {params.clip.frames} x {params.clip.size} x {params.clip.size} over "
        f"{params.clip.seconds:.2g} s. Mean ± std over n = {len(params.seeds)} seeds; at quick every seed is "
        "a world of its own, so "
        "compare methods within a seed (differences below, claims, figure), not their means' spread. Videos "
        "left out in "
        f"preparation: {counts.get('left out in preparation', 0):.0f}; not decoded in training: "
        f"{counts.get('not decoded in training', 0):.0f} (the most of any run).\n"
    )


def _cells(results: pd.DataFrame, method: str, metrics: Sequence[str], table: str = "A") -> list[str]:
    return [mean_std(per_seed(results, method, metric, table), 1) for metric in metrics]


def _main(results: pd.DataFrame, params: HicoParams, target: TargetName) -> str:
    """A: every method that was run."""
    own = results[results["data"] == target]
    metrics = [m for m in ACCURACIES if (own["metric"] == m).any()]
    lines = [
        [METHODS[name].label, METHODS[name].source if name != "scratch" else "–", *_cells(own, name, metrics)]
        for name in params.methods
    ]
    return (
        f"## A. Methods, {target}\n\nTop-1 in %. `linear` and `1-NN`: frozen encoder in eval mode, "
        "standardised features. `LFT`: the "
        "official linear evaluation, in which BN statistics adapt; never compare it with `linear`. `topic "
        "AUC`: same topic or not, "
        "pairs of clips of different videos. Published rows for UCF101 and HMDB51 are at the end.\n\n"
        + markdown_table(["method", "pre-trained on", *metrics], lines)
    )


def _labelled(
    results: pd.DataFrame, params: HicoParams, name: MethodName, metrics: Sequence[str]
) -> list[str]:
    if name not in params.methods:
        return [NOT_RUN, *[""] * (len(metrics) - 1)]
    return _cells(results, name, metrics)


def _sweep(results: pd.DataFrame, params: HicoParams) -> str:
    """B."""
    lines = [
        [label, *_labelled(results, params, name, ("action linear", "topic linear"))]
        for label, name in SWEEP.items()
    ]
    return (
        "## B. VCL alone, largest distance between the two clips\n\nThe published sweep is not in `published.csv`.\n\n"
        + markdown_table(["distance", "action linear", "topic linear"], lines)
    )


def _topic(results: pd.DataFrame, params: HicoParams) -> str:
    """C."""
    metrics = ("action linear", "topic linear", "topic AUC")
    lines = [[METHODS[name].label, *_labelled(results, params, name, metrics)] for name in TOPIC_ROWS]
    return "## C. Topic loss: on and off, weight, gamma, pair combination\n\n" + markdown_table(
        ["method", *metrics], lines
    )


def _components(results: pd.DataFrame, params: HicoParams) -> str:
    """D."""
    metrics = ("action linear", "topic linear")
    lines = [[*ticks, *_labelled(results, params, name, metrics)] for name, ticks in COMPONENTS.items()]
    return "## D. Components\n\n" + markdown_table(["VCL", "TCL", "gradual", *metrics], lines)


def _trimmed(results: pd.DataFrame, params: HicoParams) -> str:
    """E."""
    lines = []
    pairs: dict[str, tuple[MethodName, MethodName]] = {
        "SimCLR": ("simclr-trimmed", "simclr"),
        "HiCo": ("hico-trimmed", "hico"),
    }
    for label, (trimmed, untrimmed) in pairs.items():
        both = (_labelled(results, params, name, ("action linear",))[0] for name in (trimmed, untrimmed))
        gap = mean_std(difference(results, untrimmed, trimmed), 1)
        lines.append([label, *both, gap])
    return (
        "## E. Trimmed against untrimmed pre-training\n\nLinear action accuracy in %, paired by seed.\n\n"
        + markdown_table(["method", "trimmed", "untrimmed", "untrimmed - trimmed"], lines)
    )


def _ranks(results: pd.DataFrame, params: HicoParams, target: TargetName) -> str:
    """F."""
    own = results[(results["data"] == target) & (results["table"] == "F")]
    ranks = sorted(own["metric"].unique(), key=lambda name: int(name.removeprefix("R@")))
    lines = [[METHODS[name].label, *_cells(own, name, ranks, "F")] for name in params.methods]
    return (
        f"## F. Retrieval, {target}\n\nR@k in %: test videos as queries, training videos as gallery, cosine "
        "of pooled features.\n\n" + markdown_table(["method", *ranks], lines)
    )


def _located(results: pd.DataFrame, params: HicoParams, target: TargetName) -> str:
    """G."""
    own = results[(results["data"] == target) & (results["table"] == "G")]
    if own.empty:
        return f"## G. Localisation, {target}\n\n{NOT_RUN}: the target has no untrimmed videos.\n"
    metrics = ("mAP@0.5", "mAP@0.75", "mAP@0.95", "mAP", "AR@100", "AUC")
    lines = [[METHODS[name].label, *_cells(own, name, metrics, "G")] for name in params.methods]
    return (
        f"## G. Localisation, {target}\n\n{NETWORK if params.bmn else WINDOWS}. All-point interpolated AP; in %.\n\n"
        + markdown_table(["method", *metrics], lines)
    )


def _simulation(results: pd.DataFrame, params: HicoParams) -> str:
    """Claim 6b."""
    final = results[(results["table"] == "H") & (results["metric"] == "final loss")]
    lines = [[name, mean_std(final.loc[final["method"] == name, "value"], 4)] for name in SCHEDULES]
    return (
        f"## Simulation of gradual sampling\n\nLoss after {params.theory.steps} steps of SGD, mean ± std over "
        f"{params.theory.seeds} "
        "seeds (`stages/hico/gradual_theory.py`).\n\n"
        + markdown_table(["distance over training", "final loss"], lines)
    )


def _published() -> str:
    rows = published("hico")
    rows = rows[rows["metric"].isin(["top-1", "recall@1"])]
    lines = [[row.method, row.setting, f"{row.value:g} {row.unit}", row.source] for row in rows.itertuples()]
    return (
        "## Published (the papers' settings; not comparable with the small tables above)\n\n"
        "From `reports/published/hico.csv`. Source `memory` means recalled, not verified.\n\n"
        + markdown_table(["method", "setting", "value", "source"], lines)
    )


if __name__ == "__main__":
    run(main)
