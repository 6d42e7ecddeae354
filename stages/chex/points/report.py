"""chex-points: the table, the claims' verdicts and the figures.

Reads `runs/chex-points/<scale>/evaluate/`, the slim networks in `prune/`, and the prepared data's classes. Writes
`reports/chex-points/<scale>/`: `results.parquet`, `table.md`, `claims.md`, `claims.json`, figures, and
`timings.json`: latencies, kept from the last run for what was measured on the same kind of machine, so that running
again changes no byte.
"""

from pathlib import Path

import pandas as pd

from stages.chex.curves import chex_run, frontier, width_lines
from stages.chex.points.claims import check_claims
from stages.chex.points.training import CloudStudy
from stages.chex.tables import (
    PARAMS,
    REDUCTION,
    Speedups,
    comparison_table,
    latency_note,
    measure_speedups,
    number,
    scale_note,
)
from stages.common.report.figures import write_svg
from stages.common.report.timings import Timings
from stages.common.report.write import report_folder, write_report
from stages.common.results import read_parquet
from stages.common.stage.run import Stage, run

TITLES = {"solids": "generated solids", "modelnet10": "ModelNet10", "modelnet40": "ModelNet40"}
COLUMNS = (
    number("accuracy %", "accuracy", 2), number("class mean %", "class_accuracy", 2),
    number("FLOPs (kMACs)", "macs", 1, 1e3), REDUCTION, PARAMS,
)  # fmt: skip
TIMED = {"": "latency, dense / slim"}
LATENCY_BATCH = 256


def main() -> None:
    """Write the report of the active scale."""
    study = CloudStudy()
    networks = [study.cell(method, study.seeds[0]) for method in study.methods]
    with Stage("chex-points", study.section, [study.prepared, study.runs / "evaluate", *networks]):
        results = read_parquet(study.runs / "evaluate" / "results.parquet")
        widths = read_parquet(study.runs / "evaluate" / "widths.parquet")
        timings = Timings(report_folder("chex-points", study.scale) / "timings.json")
        speedups = measure_speedups(study, dict.fromkeys(study.parts, TIMED), LATENCY_BATCH, timings)
        table = table_markdown(study, results, speedups, timings)
        claims = check_claims(results, study.params)
        write_report(
            "chex-points",
            study.scale,
            results,
            table,
            claims,
            lambda output: draw(study, results, widths, output),
            timings,
        )


def table_markdown(study: CloudStudy, results: pd.DataFrame, speedups: Speedups, timings: Timings) -> str:
    """`table.md`: T4, point clouds."""
    data, recipe = study.params.data, study.params.recipe
    return (
        f"# CHEX on point clouds, {study.scale} scale\n\n## {TITLES[data.name]} ({scale_note(study.scale)})\n\n"
        f"PointNet on {data.points} points, {recipe.steps} steps of {recipe.batch} for every row; "
        f"mean ± std over n = {len(study.seeds)} seeds; the last weights, no voting. FLOPs are multiply-accumulates of "
        f"convolution and linear layers of the slim network. {latency_note(study, LATENCY_BATCH, timings)}\n\n"
        + comparison_table(study, data.name, results, COLUMNS, speedups, TIMED)
        + "\n## Published\n\nThe authors released neither code nor a recipe for point clouds, and "
        "`reports/published/chex.csv` has no number of theirs: there is nothing to compare with.\n"
    )


def draw(study: CloudStudy, results: pd.DataFrame, widths: pd.DataFrame, output: Path) -> None:
    """Write the figures into the folder `output`."""
    data = study.params.data.name
    title = f"PointNet, {TITLES[data]} ({study.scale} scale)"
    figure = frontier(results, "accuracy", study.methods, "accuracy %", title)
    write_svg(figure, output / "accuracy-against-flops.svg")
    if "chex" in study.methods:
        target = min(study.params.prune.flops)
        run = chex_run(widths, data, target, study.seeds[0])
        title = f"CHEX, FLOPs {target:.0%}: widths of the layers"
        write_svg(width_lines(run, study.params.recipe.steps, title), output / "widths-over-training.svg")


if __name__ == "__main__":
    run(main)
