"""chex-detection: the tables, the claims' verdicts and the figures.

Reads `runs/chex-detection/<scale>/evaluate/` and the slim detectors in `prune/`. Writes
`reports/chex-detection/<scale>/`: `results.parquet`, `table.md`, `claims.md`, `claims.json`, figures, and
`timings.json`: latencies, kept from the last run for what was measured on the same kind of machine, so that running
again changes no byte.
"""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from stages.chex.curves import chex_run, frontier, width_lines
from stages.chex.detection.claims import NAMES, check_claims
from stages.chex.detection.networks import BODY
from stages.chex.detection.params import DetectorName
from stages.chex.detection.training import TABLES, DetectorStudy
from stages.chex.tables import (
    PARAMS,
    REDUCTION,
    Column,
    Speedups,
    comparison_table,
    latency_note,
    measure_speedups,
    number,
    scale_note,
)
from stages.common.report.figures import write_svg
from stages.common.report.tables import markdown_table
from stages.common.report.timings import Timings
from stages.common.report.write import report_folder, write_report
from stages.common.results import published, read_parquet
from stages.common.stage.run import Stage, run

BOXES = (number("box AP", "bbox_AP", 1), number("AP50", "bbox_AP50", 1), number("AP75", "bbox_AP75", 1))
MASKS = (number("mask AP", "segm_AP", 1), number("AP50", "segm_AP50", 1), number("AP75", "segm_AP75", 1))
COST = (number("body MMACs", "macs", 2, 1e6), REDUCTION)
COLUMNS: dict[DetectorName, tuple[Column, ...]] = {
    "ssd": (*BOXES, *COST, number("whole MMACs", "whole_macs", 2, 1e6), PARAMS),
    "mask-rcnn": (*BOXES, *MASKS, *COST, PARAMS),
}
LATENCY = "latency of the body, dense / slim"
TIMED: dict[DetectorName, dict[str, str]] = {
    "ssd": {BODY["ssd"]: LATENCY, "net": "of the whole"},
    "mask-rcnn": {BODY["mask-rcnn"]: LATENCY},
}
LATENCY_BATCH = 32


def main() -> None:
    """Write the report of the active scale."""
    study = DetectorStudy()
    networks = [study.cell(method, study.seeds[0]) for method in study.methods]
    with Stage("chex-detection", study.section, [study.runs / "evaluate", *networks]):
        results = read_parquet(study.runs / "evaluate" / "results.parquet")
        widths = read_parquet(study.runs / "evaluate" / "widths.parquet")
        timings = Timings(report_folder("chex-detection", study.scale) / "timings.json")
        speedups = measure_speedups(study, TIMED, LATENCY_BATCH, timings)
        table = table_markdown(study, results, speedups, timings)
        claims = check_claims(results, study.params)
        write_report(
            "chex-detection",
            study.scale,
            results,
            table,
            claims,
            lambda output: draw(study, results, widths, output),
            timings,
        )


def table_markdown(study: DetectorStudy, results: pd.DataFrame, speedups: Speedups, timings: Timings) -> str:
    """`table.md`: T2 and T3, ours and the published rows."""
    data = "generated scenes" if study.params.data.kind == "scenes" else "COCO's layout, by folder"
    parts = [f"# CHEX on detectors, {study.scale} scale\n"]
    for name, settings in study.params.detectors.items():
        rows = results[results["table"] == TABLES[name]]
        parts.append(
            f"## {TABLES[name]} {NAMES[name]}, {data} ({scale_note(study.scale)})\n\n"
            f"Body {settings.net}, {settings.recipe.steps} steps of {settings.recipe.batch} images for every row; mean ± "
            f"std over n = {len(study.seeds)} seeds; the last weights. Only the body is pruned, as in the paper; FLOPs are "
            f"its multiply-accumulates. {latency_note(study, LATENCY_BATCH, timings)}\n\n"
            + comparison_table(study, name, rows, COLUMNS[name], speedups, TIMED[name])
        )
    parts.append(_published(study.parts))
    return "\n".join(parts)


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


def draw(study: DetectorStudy, results: pd.DataFrame, widths: pd.DataFrame, output: Path) -> None:
    """Write the figures into the folder `output`."""
    for name, settings in study.params.detectors.items():
        rows = results[results["table"] == TABLES[name]]
        title = f"{NAMES[name]} ({study.scale} scale), FLOPs of the body"
        figure = frontier(rows, "bbox_AP", study.methods, "box AP", title)
        write_svg(figure, output / f"ap-against-flops-{name}.svg")
        if "chex" in study.methods:
            target = min(settings.prune.flops)
            run = chex_run(widths, name, target, study.seeds[0])
            run.columns = run.columns.str.removeprefix(f"{BODY[name]}.")
            title = f"CHEX, {NAMES[name]}, body FLOPs {target:.0%}: widths of the layers"
            figure = width_lines(run, settings.recipe.steps, title)
            write_svg(figure, output / f"widths-over-training-{name}.svg")


if __name__ == "__main__":
    run(main)
