"""elsa-dense: tables T2 and T3, the claims' verdicts and the figure.

Reads `runs/elsa-dense/<scale>/evaluate/results.parquet`. Writes `reports/elsa-dense/<scale>/`:
`results.parquet`, `table.md`, `claims.md`, `claims.json`, `rows.svg`.
"""

from pathlib import Path

import pandas as pd

from stages.common.report.tables import markdown_table, mean_std
from stages.common.report.write import write_report
from stages.common.results import published, read_parquet
from stages.common.stage.params import load_params
from stages.common.stage.run import Stage, run
from stages.elsa.dense.cells import FULL_SIZE, section_of
from stages.elsa.dense.claims import check_claims, per_seed
from stages.elsa.dense.figures import draw_figures
from stages.elsa.dense.params import ElsaDenseParams, Task

LABELS = {"window": "window attention (Swin)", "elsa": "**ELSA**", "depthwise": "depthwise convolution"}


def main() -> None:
    """Write the report of the active scale."""
    params = load_params(ElsaDenseParams, "elsa-dense")
    evaluated = Path("runs/elsa-dense") / params.scale / "evaluate"
    with Stage("elsa-dense", params, [evaluated]):
        results = read_parquet(evaluated / "results.parquet")
        write_report(
            "elsa-dense",
            params.scale,
            results,
            table_markdown(results, params),
            check_claims(results, params),
            lambda output: draw_figures(results, params, output),
        )


def table_markdown(results: pd.DataFrame, params: ElsaDenseParams) -> str:
    """`table.md`: T2 and T3, ours and the published."""
    return "\n".join(
        [
            f"# ELSA in detection and segmentation, {params.scale} scale\n",
            _detection(results, params),
            _segmentation(results, params),
        ]
    )


def _header(params: ElsaDenseParams, task: Task) -> str:
    note = "small scale, not the paper's setting" if params.scale == "quick" else f"{params.scale} scale"
    section = section_of(params, task)
    data, recipe = section.data, section.recipe
    if data.scenes is not None and data.kind == "scenes":
        source = f"generated scenes of {data.scenes.size} px"
    else:
        source = "COCO's layout" if task == "detection" else "ADE20K's layout"
    start = "from scratch" if params.pretrained is None else "pre-trained trunk"
    return (
        f"{note}: {source}, {recipe.steps} steps of {recipe.batch} images for every row, {start}; mean ± std over "
        f"n = {len(params.seeds)} seeds. One trunk, its last stage keeps window attention in every row. Differences are "
        "paired by seed."
    )


def _rows(
    results: pd.DataFrame, params: ElsaDenseParams, metrics: list[str], gaps: list[str]
) -> list[list[str]]:
    """A line per mixer: means, gaps to window attention, parameters in M (the last of the metrics)."""
    lines = []
    for mixer in params.mixers:
        line = [LABELS.get(mixer, mixer)]
        line += [mean_std(per_seed(results, mixer, metric), 1) for metric in metrics]
        for metric in gaps:
            gap = (per_seed(results, mixer, metric) - per_seed(results, "window", metric)).dropna()
            line.append("–" if mixer == "window" else mean_std(gap, 1))
        lines.append(line)
    return lines


def _size(
    results: pd.DataFrame, params: ElsaDenseParams, table: str, lines: list[list[str]]
) -> list[list[str]]:
    """The lines with the parameters of what was trained behind them."""
    sizes = results[(results["table"] == table) & (results["metric"] == "params")]
    sizes = sizes[sizes["setting"] != FULL_SIZE].groupby("method")["value"].first()
    return [[*line, f"{sizes[mixer]:.2f}"] for line, mixer in zip(lines, params.mixers, strict=True)]


def _detection(results: pd.DataFrame, params: ElsaDenseParams) -> str:
    """T2."""
    metrics = ["box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75"]
    lines = _size(results, params, "T2", _rows(results, params, metrics, ["box_ap", "mask_ap"]))
    header = [
        "backbone", "box AP", "AP50", "AP75", "mask AP", "AP50", "AP75", "box AP minus window", "mask AP minus window",
        "params (M)",
    ]  # fmt: skip
    return (
        f"## Mask R-CNN (T2)\n\n{_header(params, 'detection')}\n\n"
        + markdown_table(header, lines)
        + "\n**Published** (COCO val2017, pre-trained on ImageNet; source in brackets; not comparable with the small table "
        "above). Counted: parameters of the same network built here.\n\n" + _published(results, "T2")
    )


def _segmentation(results: pd.DataFrame, params: ElsaDenseParams) -> str:
    """T3."""
    lines = _size(
        results, params, "T3", _rows(results, params, ["miou", "miou_ms_flip"], ["miou", "miou_ms_flip"])
    )
    ratios = ", ".join(f"{ratio:g}" for ratio in params.segmentation.ratios)
    header = [
        "backbone", "mIoU ss", "mIoU ms+flip", "ss minus window", "ms+flip minus window", "params (M)",
    ]  # fmt: skip
    return (
        f"## UPerNet (T3)\n\n{_header(params, 'segmentation')} ms+flip: probabilities averaged over sizes {ratios} and "
        "mirror images.\n\n"
        + markdown_table(header, lines)
        + "\n**Published** (ADE20K val, 160k steps, 512 px, pre-trained on ImageNet; source in brackets; not comparable "
        "with the small table above).\n\n" + _published(results, "T3")
    )


def _digits(value: float) -> str:
    """With one decimal, or with two where the authors print two."""
    return f"{value:.1f}" if round(value, 1) == value else f"{value:.2f}"


def _published(results: pd.DataFrame, table: str) -> str:
    """The paper's table, with the parameters that are counted here."""
    name, metrics = ("coco2017_val", ("box_ap", "mask_ap")) if table == "T2" else ("ade20k_val", ("miou",))
    theirs = published("elsa-dense").query(f"table == '{name}' and method != 'ELSA-Swin over Swin'")
    ours = results[(results["table"] == table) & (results["setting"] == FULL_SIZE)].set_index("method")[
        "value"
    ]
    lines = []
    for (method, setting), rows in theirs[theirs["metric"].isin(metrics)].groupby(
        ["method", "setting"], sort=False
    ):
        cells = [
            f"{_digits(r.value)} ({r.source})"
            for m in metrics
            for r in rows[rows["metric"] == m].itertuples()
        ]
        built = table == "T3" or not setting.startswith("Cascade")
        sizes = theirs[(theirs["method"] == method) & (theirs["metric"] == "params")]
        sizes = sizes[sizes["setting"] == setting] if table == "T2" else sizes
        lines.append(
            [method, setting, *cells, f"{sizes['value'].iloc[0]:g}", f"{ours[method]:.2f}" if built else "–"]
        )
    header = (
        ["backbone", "setting", *("box AP", "mask AP")] if table == "T2" else ["backbone", "setting", "mIoU"]
    )
    return markdown_table([*header, "params (M)", "counted (M)"], lines)


if __name__ == "__main__":
    run(main)
