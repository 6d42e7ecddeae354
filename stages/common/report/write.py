"""What ends every pipeline: the report's folder, its place on the page of all papers, its run in MLflow."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from stages.common.report.claims import Claim, claims_markdown
from stages.common.report.html import PAPERS, write_index
from stages.common.report.timings import Timings
from stages.common.results import write_parquet
from stages.common.stage.files import output_dir
from stages.common.stage.tracking import RunLog, start_sync


def report_folder(paper: str, scale: str) -> Path:
    """`reports/<paper>/<scale>`."""
    return Path("reports") / paper / scale


def write_report(
    paper: str,
    scale: str,
    results: pd.DataFrame,
    table: str,
    claims: Sequence[Claim],
    draw: Callable[[Path], None],
    timings: Timings | None = None,
) -> None:
    """Write the report of a scale and hand it to MLflow; `draw` puts the figures into the folder it is given.

    Args:
        paper: the pipeline's name, a key of `PAPERS`.
        scale: quick, real or paper.
        results: tidy results (`results_frame`), from which everything else was made.
        table: `table.md`, markdown.
        claims: verdicts, in the card's order.
        draw: writes SVG files into a folder.
        timings: measured times that are to stay.
    """
    folder = report_folder(paper, scale)
    with output_dir(folder) as output:
        write_parquet(results, output / "results.parquet")
        (output / "table.md").write_text(table)
        title = f"{PAPERS[paper][0]}, {scale} scale: claims"
        (output / "claims.md").write_text(claims_markdown(title, claims))
        (output / "claims.json").write_text(json.dumps([c.to_json() for c in claims], indent=1) + "\n")
        if timings:
            timings.save(output / "timings.json")
        draw(output)
    write_index(Path("reports"))
    with RunLog(paper, "report", "report", kind="execution", tags={"scale": scale}) as log:
        for path in sorted(folder.iterdir()):
            log.artifact(path)
    start_sync()
