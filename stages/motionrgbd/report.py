"""motionrgbd: the comparison tables, the claims' verdicts and the figures.

Reads `data/motionrgbd/<scale>/` (what was left out) and `runs/motionrgbd/<scale>/evaluate/`. Writes
`reports/motionrgbd/<scale>/`: `results.parquet`, `table.md`, `claims.md`, `claims.json`, figures, and `timings.json`: times
of forward passes, kept from the last run on the same kind of machine.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch

from stages.common.report.tables import markdown_table, mean_std
from stages.common.report.timings import Timings
from stages.common.report.write import report_folder, write_report
from stages.common.results import published, read_parquet
from stages.common.stage.params import load_params
from stages.common.stage.run import Stage, run
from stages.motionrgbd.claims import check_claims, fused, per_seed
from stages.motionrgbd.figures import draw_figures
from stages.motionrgbd.method.dsn import inception_dsn
from stages.motionrgbd.method.dtn import DTN
from stages.motionrgbd.method.rcm import RCM
from stages.motionrgbd.method.unimodal import UnimodalNet
from stages.motionrgbd.params import MODALITIES, MotionrgbdParams
from stages.motionrgbd.released_forward import released_forward

LABELS = {
    "full": "full method", "no-rcm": "- RCM", "no-distillation": "- distillation", "no-frp": "- FRP",
    "random-map": "FRP, shuffled maps", "no-sharpness": "- sharpness (t = 1)", "single-loss": "- branch losses",
    "all-neighbours": "rho = 1 (no k-NN)", "branch-1": "shortest branch alone", "branch-2": "middle branch alone",
    "branch-3": "longest branch alone", "frames-half": "half the frames in each branch",
    "frames-first": "all branches as the shortest", "frames-last": "all branches as the longest",
    "dsn-mean": "DSN, mean over time", "dsn-lstm": "DSN, LSTM", "3d-cnn": "3-D CNN", "dtn": "DSN + DTN",
    "dtn-rcm": "+ RCM", "dtn-rcm-distillation": "+ distillation", "half-window": "w halved",
    "double-window": "w doubled", "rho-0.5": "rho = 0.5", "half-tau": "tau halved", "double-tau": "tau doubled",
    "half-depth": "N halved", "double-depth": "N doubled", "capf": "**CAPF**", "concat": "concatenation and MLP",
    "no-spatial": "CAPF - spatial interaction", "no-temporal": "CAPF - temporal interaction",
    "no-auxiliary": "CAPF - discriminator and reconstruction",
}  # fmt: skip
TABLES = {  # title, rows
    "B": ("Components (B): from the spatial network up", (
        "3d-cnn", "dsn-mean", "dsn-lstm", "dtn", "dtn-rcm", "dtn-rcm-distillation", "no-sharpness", "full", "no-rcm",
        "no-distillation", "no-frp", "random-map", "single-loss",
    )),
    "C": ("Branches and frame counts (C)", (
        "full", "branch-1", "branch-2", "branch-3", "frames-half", "frames-first", "frames-last",
    )),
    "E": ("Hyper-parameters (E)", (
        "full", "half-window", "double-window", "rho-0.5", "all-neighbours", "half-tau", "double-tau", "half-depth",
        "double-depth",
    )),
}  # fmt: skip
FUSIONS = (
    "averaged probabilities", "averaged log-probabilities", "concat", "no-spatial", "no-temporal", "no-auxiliary", "capf",
)  # fmt: skip
SPEED_SHAPE = (1, 16, 3, 64, 64)  # clips, frames, channels, pixels of the forward passes that are timed
SPEED_PAIRS = 3


def main() -> None:
    """Write the report of the active scale."""
    params = load_params(MotionrgbdParams, "motionrgbd")
    prepared, runs = Path("data/motionrgbd") / params.scale, Path("runs/motionrgbd") / params.scale
    with Stage("motionrgbd", params, [prepared, runs / "evaluate"]):
        results = read_parquet(runs / "evaluate" / "results.parquet")
        timings = Timings(report_folder("motionrgbd", params.scale) / "timings.json")
        ours, released, difference = measure_forward(timings)
        speedups = [slow / fast for fast, slow in zip(ours, released, strict=True)]
        left_out = json.loads((prepared / str(params.seeds[0]) / "left_out.json").read_text())
        table = "\n".join(
            [
                f"# MotionRGBD: gestures from colour and depth, {params.scale} scale\n",
                main_table(results, params),
                *unimodal_tables(results, params),
                fusion_table(results, params),
                factor_table(results, params),
                data_lines(left_out, params),
                speed_lines(ours, released, difference, timings),
                published_table(),
            ]
        )
        write_report(
            "motionrgbd",
            params.scale,
            results,
            table,
            check_claims(results, speedups, params),
            lambda output: draw_figures(results, params, runs, output),
            timings,
        )


def measure_forward(timings: Timings) -> tuple[list[float], list[float], float]:
    """Seconds of our forward pass and of the released formulation, in pairs, and how far their scores differ.

    The paper's unimodal network (its branches for 16 frames), eval mode, one thread.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    frames = SPEED_SHAPE[1]
    dtn = DTN((4, 8, 12), 512, 6, 8, 64, 768, 0.7)
    net = UnimodalNet(inception_dsn(), RCM(frames, 256, 512), dtn, 512, 60).eval()
    x_BTCHW, guidance_BTHW = torch.randn(SPEED_SHAPE), torch.rand(*SPEED_SHAPE[:2], *SPEED_SHAPE[3:])

    def seconds(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    with torch.inference_mode():
        ours = lambda: net(x_BTCHW, guidance_BTHW, 0.05)[0].merged_BK  # noqa: E731
        theirs = lambda: released_forward(net, x_BTCHW, guidance_BTHW, 0.05).merged_BK  # noqa: E731
        difference = float((ours() - theirs()).abs().max() / theirs().abs().max())

        def take() -> list[float]:
            return [value for _ in range(SPEED_PAIRS) for value in (seconds(ours), seconds(theirs))]

        name = f"forward ours and released, in turns, {'x'.join(map(str, SPEED_SHAPE))}"
        values = timings.measure(name, take)
    return values[::2], values[1::2], difference


def settings(params: MotionrgbdParams) -> str:
    """What a small-scale table must say of itself."""
    small = "small scale, not the paper's setting" if params.scale == "quick" else f"{params.scale} scale"
    start = params.pretrain.released or "random weights"
    return (
        f"{params.data.name}, {small}; {params.data.frames} frames of {params.data.side} pixels; unimodal networks start "
        f"from {start}, fusions from the trained unimodal ones; mean ± std over n = {len(params.seeds)} seeds; last epoch"
    )


def main_table(results: pd.DataFrame, params: MotionrgbdParams) -> str:
    """A."""
    rows = [
        ["single modality", *(mean_std(per_seed(results, "main", "full", m), 1) for m in MODALITIES), ""],
        ["averaged log-probabilities", "", "", mean_std(fused(results, "averaged log-probabilities"), 1)],
        ["concatenation and MLP", "", "", mean_std(fused(results, "concat"), 1)],
        ["**CAPF**", "", "", mean_std(fused(results, "capf"), 1)],
        [
            "official protocol (best of several scores on the test set)",
            *(
                mean_std(per_seed(results, "main", "full", m, "top-1 official protocol"), 1)
                for m in MODALITIES
            ),
            mean_std(fused(results, "capf", "top-1 of all three scores"), 1),
        ],
    ]
    return (
        f"## Main comparison (A)\n\nTop-1 %; {settings(params)}.\n\n"
        + markdown_table(["row", "RGB", "depth", "RGB-D"], rows)
        + "\nThe official protocol of the fusion is the sum of all three scores.\n"
    )


def unimodal_tables(results: pd.DataFrame, params: MotionrgbdParams) -> list[str]:
    """B, C and E; a table none of whose rows was run beside `full` is left out."""
    modality, found = params.ablation.modality, []
    target = ""
    if params.data.name == "generated":
        target = f"; target: the {params.data.classes // 2} classes that {modality} can see"
    for title, names in TABLES.values():
        rows = [name for name in names if len(per_seed(results, "ablation", name, modality))]
        if len(rows) < 2:
            continue
        metrics = ("top-1", *(f"top-1 of the {branch} branch" for branch in ("small", "medium", "large")))
        lines = [
            [LABELS[name], *(mean_std(per_seed(results, "ablation", name, modality, m), 1) for m in metrics)]
            for name in rows
        ]
        count = params.ablation.per_class
        few = f"{count} training clips of a class" if count else "all training clips"
        found.append(
            f"## {title}\n\n{modality}, {few}{target}; top-1 % of merged and branch scores; n = {len(params.seeds)}.\n\n"
            + markdown_table(["row", "merged", "first branch", "second", "third"], lines)
        )
    return found


def fusion_table(results: pd.DataFrame, params: MotionrgbdParams) -> str:
    """D."""
    metrics = (
        "top-1", "top-1 of all three scores", "top-1 of the rgb scores", "top-1 of the depth scores",
    )  # fmt: skip
    best = pd.concat([per_seed(results, "main", "full", m) for m in MODALITIES], axis=1).max(axis=1)
    lines = [["best single modality", mean_std(best, 1), "–", "–", "–"]]
    lines += [
        [LABELS.get(row, row), *(mean_std(fused(results, row, metric), 1) for metric in metrics)]
        for row in FUSIONS
        if len(fused(results, row))
    ]
    return "## Fusion (D)\n\nTop-1 %.\n\n" + markdown_table(
        ["row", "fused", "sum of all scores", "RGB side", "depth side"], lines
    )


def factor_table(results: pd.DataFrame, params: MotionrgbdParams) -> str:
    """F."""
    if params.data.name != "generated":
        return ""
    columns = ("trajectory", "glove", "depth")
    lines: list[list[str]] = []
    for suffix, title in (("", ""), (", frames permuted", ", frames permuted")):
        for m in MODALITIES:
            values = [per_seed(results, "main", "full", m, f"{c} accuracy{suffix}") for c in columns]
            top = per_seed(results, "main", "full", m, f"top-1{suffix}")
            lines.append([f"{m.upper()}{title}", *(mean_std(v, 1) for v in (top, *values))])
    for row in ("concat", "capf"):
        values = [fused(results, row, f"{c} accuracy") for c in columns]
        lines.append([LABELS[row], *(mean_std(v, 1) for v in (fused(results, row), *values))])
    return (
        "## Parts of the label, and order (F)\n\nAccuracy %; guessing: 6.2, 25, 50, 50. Guidance maps are computed anew "
        "from the permuted frames.\n\n"
        + markdown_table(["row", "16 classes", "trajectory", "glove (RGB)", "push / pull (depth)"], lines)
    )


def data_lines(left_out: dict[str, Sequence[str] | int], params: MotionrgbdParams) -> str:
    """What of the data was not used."""
    reasons = left_out["bad"]
    shown = "".join(f"\n* {reason}" for reason in reasons[:20]) if isinstance(reasons, list) else ""
    count = len(reasons) if isinstance(reasons, list) else 0
    return (
        f"## Data\n\n{count} clips are left out because a file is bad (`data.on_bad: {params.data.on_bad}`), "
        f"{left_out['short']} because they have fewer than {params.data.min_frames} frames.{shown}\n"
    )


def speed_lines(ours: list[float], released: list[float], difference: float, timings: Timings) -> str:
    """Claim 7's measurement."""
    shape = " x ".join(map(str, SPEED_SHAPE))
    lines = [["time folded into the batch", *(f"{value:.2f}" for value in ours)]]
    lines.append(["released formulation", *(f"{value:.2f}" for value in released)])
    return (
        f"## Forward pass\n\nSeconds of the paper's unimodal network on {shape}, one thread, taken in turns; "
        f"{timings.machine}. Scores differ by {difference:.0e} of the largest.\n\n"
        + markdown_table(["formulation", *(f"run {n + 1}" for n in range(len(ours)))], lines)
    )


def published_table() -> str:
    """Published numbers, all of them of other settings than `quick`."""
    rows = published("motionrgbd").fillna("–")
    lines = [
        [row.table, row.method, row.setting, f"{row.metric} {row.value:g} {row.unit}", row.source]
        for row in rows.itertuples()
    ]
    return (
        "## Published (the papers' settings; not comparable with the small tables above)\n\n"
        "From `reports/published/motionrgbd.csv`. Source `memory`: not found written.\n\n"
        + markdown_table(["table", "method", "setting", "result", "source"], lines)
    )


if __name__ == "__main__":
    run(main)
