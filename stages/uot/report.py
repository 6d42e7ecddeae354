"""uot: the comparison tables, the claims' verdicts and the figures.

Reads the results of `runs/uot/<scale>/{evaluate,theory,released}/`. Writes `reports/uot/<scale>/`:
`results.parquet`, `table.md`, `claims.md`, `claims.json`, figures, and `timings.json`: seconds of each
selection, kept from the last run on the same kind of machine.
"""

import time
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file

from stages.common.report.tables import markdown_table, mean_std
from stages.common.report.timings import Timings
from stages.common.report.write import report_folder, write_report
from stages.common.results import published, read_parquet
from stages.common.stage.params import load_params
from stages.common.stage.run import Stage, run
from stages.uot.cells import CELLS, JOINT, ROWS
from stages.uot.claims import check_claims, gains, main_setting, per_seed, setting
from stages.uot.figures import draw_figures
from stages.uot.method.selection import rank_classes
from stages.uot.params import UotParams
from stages.uot.released_files import MEANS, released_file

LABELS = {
    "scratch": "from scratch",
    "vanilla": "vanilla fine-tuning",
    "vanilla-2x": "vanilla, twice the steps",
    "l2-sp": "L2-SP",
    "uot": "**joint, uot classes**",
    "uot-unlabelled": "uot classes without labels (FixMatch style)",
    "nearest": "joint, nearest-mean classes",
    "balanced-ot": "joint, balanced-OT classes",
    "random": "joint, random classes",
    "all": "joint, all source classes",
}
PARTS = ("evaluate", "theory", "released")


def main() -> None:
    """Write the report of the active scale."""
    params = load_params(UotParams, "uot")
    runs = Path("runs/uot") / params.scale
    with Stage("uot", params, [runs / part for part in PARTS]):
        results = pd.concat(
            [read_parquet(runs / part / "results.parquet") for part in PARTS], ignore_index=True
        )
        timings = Timings(report_folder("uot", params.scale) / "timings.json")
        claims = check_claims(results, params)
        table = table_markdown(results, selection_seconds(results, timings), timings, params)
        write_report(
            "uot",
            params.scale,
            results,
            table,
            claims,
            lambda output: draw_figures(results, params, output),
            timings,
        )


def selection_seconds(results: pd.DataFrame, timings: Timings) -> dict[tuple[str, str], float]:
    """Wall time of each selection from the released class means: (start, target) -> seconds, one thread."""
    rows = results[results["table"] == "T1"]
    pairs = sorted(set(zip(rows["setting"], rows["data"], strict=True)))
    if not pairs:
        return {}
    torch.set_num_threads(1)
    means = load_file(released_file(MEANS))

    def measure(start: str, target: str) -> list[float]:
        begin = time.perf_counter()
        rank_classes("uot", means[f"{start}/imagenet"], means[f"{start}/{target}"])
        return [time.perf_counter() - begin]

    return {(s, t): timings.measure(f"select {s}/{t}", lambda s=s, t=t: measure(s, t))[0] for s, t in pairs}  # type: ignore[misc]


def table_markdown(
    results: pd.DataFrame, seconds: dict[tuple[str, str], float], timings: Timings, params: UotParams
) -> str:
    """`table.md`: all tables of the card that this scale fills."""
    parts = [
        f"# UOT: fine-tuning with selected pre-training data, {params.scale} scale\n",
        _accuracy(results, params),
        _target_size(results, params),
        _sweeps(results, params),
        _selections(results, params),
        _released(results, seconds, timings),
        _theory(results, params),
        _published(),
    ]
    return "\n".join(part for part in parts if part)


def _scale_note(params: UotParams) -> str:
    return "small scale, not the paper's setting" if params.scale == "quick" else f"{params.scale} scale"


def _accuracy(results: pd.DataFrame, params: UotParams) -> str:
    """T2 (quick) and T7 (photographs): rows by start and data set."""
    fine = params.finetune
    rows = [row for selection in params.selections for row in CELLS.get(selection, (selection,))]
    text = (
        f"## Accuracy ({_scale_note(params)})\n\n"
        f"Top-1 % on the target's test images with {fine.fraction:g} of its training images, last "
        f"checkpoint; mean ± std over n = {len(params.seeds)} seeds. {fine.length} {fine.unit} of "
        f"{fine.batch} target images, and as many source images where a row has them (cost: images per step "
        "over vanilla's, times its steps). `best` is the best of five evaluations, chosen on the test set as "
        "the official number is. Differences are paired by seed. Rows with equal numbers "
        "used the same classes.\n"
    )
    if len(params.targets) > 1:
        text += _by_data_set(results, params, rows)
    for target in params.targets:
        own = results[results["data"] == target]
        for pretraining in params.pretraining:
            vanilla = per_seed(own, "vanilla", main_setting(params, pretraining, "vanilla"))
            lines = []
            for row in rows:
                where = main_setting(params, pretraining, row)
                values = per_seed(own, row, where)
                lines.append(
                    [
                        LABELS.get(row, f"joint, {row} classes"),
                        mean_std(values),
                        mean_std((values - vanilla).dropna()),
                        mean_std(per_seed(own, row, where, "best top1")),
                        mean_std(per_seed(own, row, where, "mean per class")),
                        f"{_cost(row):g}x",
                    ]
                )
            header = ["method", "top-1 %", "minus vanilla", "best", "mean per class %", "cost"]
            text += f"\n**{target}, start {pretraining}**\n\n" + markdown_table(header, lines)
    return text


def _by_data_set(results: pd.DataFrame, params: UotParams, rows: list[str]) -> str:
    """T7: top-1 of every row on every data set, and on their average."""
    text = ""
    for pretraining in params.pretraining:
        lines = []
        for row in rows:
            where = main_setting(params, pretraining, row)
            single = [per_seed(results[results["data"] == target], row, where) for target in params.targets]
            lines.append(
                [
                    LABELS.get(row, f"joint, {row} classes"),
                    *map(mean_std, single),
                    mean_std(per_seed(results, row, where)),
                ]
            )
        header = ["method", *params.targets, "average"]
        text += f"\n**Top-1 %, start {pretraining}**\n\n" + markdown_table(header, lines)
    return text


def _cost(row: str) -> int:
    how = ROWS.get(row, JOINT)
    return how.length * {"none": 1, "labelled": 2, "unlabelled": 3}[how.source]


def _target_size(results: pd.DataFrame, params: UotParams) -> str:
    """T3: accuracy and gain by fraction of the target."""
    fractions = sorted({params.finetune.fraction, *params.finetune.fractions})
    first = next(iter(params.pretraining))
    lines = []
    for pretraining in params.pretraining:
        for row in ("scratch", "vanilla", "uot"):
            start = first if row == "scratch" else pretraining
            values = [per_seed(results, row, main_setting(params, start, row, f)) for f in fractions]
            lines.append([f"{pretraining}: {LABELS[row]}", *(mean_std(v, 1) for v in values)])
        gain = gains(results, params, pretraining)
        lines.append(
            [f"{pretraining}: gain of uot", *(mean_std(gain[f], 1) if len(gain) else "–" for f in fractions)]
        )
    return (
        "## By target size (T3)\n\n"
        "Top-1 % by fraction of the target's training images; the gain is paired by seed.\n\n"
        + (markdown_table(["start and method", *(f"{f:g}" for f in fractions)], lines))
    )


def _sweeps(results: pd.DataFrame, params: UotParams) -> str:
    """T4: size of the selection and weight of the source loss."""
    fine, k = params.finetune, params.select.k
    if not fine.k_sweep and not fine.source_weights:
        return ""
    first, start = next(iter(params.pretraining.items()))
    sizes, weights = sorted({k, *fine.k_sweep}), sorted({start.source_weight, *fine.source_weights})

    def line(row: str, settings: list[str]) -> list[str]:
        return [LABELS[row], *(mean_std(per_seed(results, row, where), 1) for where in settings)]

    by_size = [
        line(row, [setting(first, fine.fraction, size, start.source_weight) for size in sizes])
        for row in ("uot", "random")
    ]
    by_weight = [
        line(row, [setting(first, fine.fraction, k if row == "uot" else 0, weight) for weight in weights])
        for row in ("uot", "all")
    ]
    return (
        f"## Selection size and source weight (T4)\n\nStart {first}, top-1 %.\n\n"
        + markdown_table(["K", *map(str, sizes)], by_size)
        + "\n"
        + markdown_table(["lambda", *(f"{w:g}" for w in weights)], by_weight)
    )


def _selections(results: pd.DataFrame, params: UotParams) -> str:
    """T8: what every method selects, where the relevant concepts are known."""
    rows = results[results["table"] == "T8"]
    if not (rows["metric"] == "purity").any():
        return ""
    columns = sorted({(row.setting, row.data) for row in rows.itertuples()})

    def cell(method: str, where: tuple[str, str], metric: str) -> str:
        chosen = rows[(rows["method"] == method) & (rows["setting"] == where[0]) & (rows["data"] == where[1])]
        return mean_std(chosen.loc[chosen["metric"] == metric, "value"], 1)

    lines = [
        [
            method,
            *(f"{cell(method, where, 'purity')} ({cell(method, where, 'overlap')})" for where in columns),
        ]
        for method in rows["method"].unique()
    ]
    return (
        "## Selections\n\n"
        "Share of the selected classes from relevant concepts, in % (and overlap with uot's, in %). "
        "`mixed` is a target of three concepts with 9, 6 and 3 classes, the last one shifted (claim 8).\n\n"
        + markdown_table(["method", *(f"{data}, {where}" for where, data in columns)], lines)
    )


def _released(results: pd.DataFrame, seconds: dict[tuple[str, str], float], timings: Timings) -> str:
    """T1: the paper's own selections, where the scale has them."""
    if not seconds:
        return ""
    table = results[results["table"] == "T1"]
    values = {(r.setting, r.data, r.method, r.metric): r.value for r in table.itertuples()}
    lines = []
    for start, target in sorted(seconds, reverse=True):
        purity = values.get((start, target, "uot", "purity"))
        lines.append(
            [
                f"{target}, {start}",
                f"{values[start, target, 'uot', 'in the official selection']:.0f} of 100",
                "–" if purity is None else f"{purity:.0f}",
                *(
                    f"{values[start, target, method, 'overlap']:.0f}"
                    for method in ("nearest", "mean-cost", "uot-1step", "balanced-ot", "round-robin")
                ),
                f"{values[start, target, 'uot', 'iterations']:.0f}",
                f"{seconds[start, target]:.3f}",
            ]
        )
    header = [
        "target, start",
        "as official",
        "purity %",
        "nearest",
        "mean-cost",
        "one step",
        "balanced OT",
        "round-robin",
        "iterations",
        "seconds",
    ]
    return (
        "## The paper's own selections (T1)\n\n"
        "K = 100 ImageNet classes from the released class means (kept as float32). `as official`: classes "
        "shared with the official code's selection. Purity: birds for CUB, dogs for dogs and pets, vehicles "
        "for cars and aircraft, by the authors' concept labels. Middle columns: overlap with uot, in %. One "
        f"thread, {timings.machine}.\n\n" + markdown_table(header, lines)
    )


def _theory(results: pd.DataFrame, params: UotParams) -> str:
    """T5 and T6: excess risks."""
    parts = []
    for table, title, pattern in (
        ("T5", "Theory: dependence on the start (T5)", r"n (?P<column>\d+), start (?P<line>[\d.]+),"),
        ("T6", "Theory: joint gradient (T6), n = 512, start 0.5 away", r"delta (?P<line>[\d.]+)$"),
    ):
        rows = results[results["table"] == table]
        keys = rows["setting"].str.extract(pattern).astype(float)
        if table == "T6":
            keys["column"] = rows["method"].str.removeprefix("alpha ").astype(float)
        rows = rows.assign(**keys)
        columns = sorted(rows["column"].unique())
        lines = [
            [f"{line:g}", *(mean_std(part.loc[part["column"] == column, "value"], 4) for column in columns)]
            for line, part in rows.groupby("line")
        ]
        corner = (
            "start away from the optimum; samples" if table == "T5" else "source away; weight of the target"
        )
        parts.append(
            f"## {title}\n\nExcess risk of SGD on linear regression, {params.theory.trials} trials a seed; "
            "mean ± std over seeds.\n\n"
            + markdown_table([corner, *(f"{column:g}" for column in columns)], lines)
        )
    return "\n".join(parts)


def _published() -> str:
    rows = published("uot")
    rows = rows[rows["table"].str.startswith("Figure")]
    lines = [[row.method, row.setting, f"{row.value:+.2f} {row.unit}"] for row in rows.itertuples()]
    return (
        "## Published (the paper's setting; not comparable with the small tables above)\n\n"
        "From `reports/published/uot.csv`, which gives the source of each number.\n\n"
        + markdown_table(["method", "setting", "accuracy difference"], lines)
    )


if __name__ == "__main__":
    run(main)
