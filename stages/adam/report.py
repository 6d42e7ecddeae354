"""adam: the comparison tables, the claims' verdicts and the figures.

Reads `runs/adam/<scale>/evaluate/`. Writes `reports/adam/<scale>/`: `results.parquet`, `table.md`, `claims.md`,
`claims.json` and figures.
"""

import json
from pathlib import Path

from stages.adam.claims import check_claims
from stages.adam.figures import draw_figures
from stages.adam.params import AdamParams
from stages.adam.tables import tables_markdown
from stages.common.report.claims import claims_markdown
from stages.common.report.html import write_index
from stages.common.results import read_parquet, write_parquet
from stages.common.stage.files import output_dir
from stages.common.stage.params import load_params
from stages.common.stage.run import Stage, run
from stages.common.stage.tracking import RunLog, start_sync


def main() -> None:
    """Write the report of the active scale."""
    params = load_params(AdamParams, "adam")
    evaluated, reports = Path("runs/adam") / params.scale / "evaluate", Path("reports/adam") / params.scale
    with Stage("adam", params, [evaluated]):
        results = read_parquet(evaluated / "results.parquet")
        claims = check_claims(results, params)
        with output_dir(reports) as output:
            write_parquet(results, output / "results.parquet")
            (output / "table.md").write_text(tables_markdown(results, params))
            title = f"Convergence of the Adam family, {params.scale} scale: claims"
            (output / "claims.md").write_text(claims_markdown(title, claims))
            (output / "claims.json").write_text(json.dumps([c.to_json() for c in claims], indent=1) + "\n")
            draw_figures(results, read_parquet(evaluated / "curves.parquet"), params, output)
        write_index(Path("reports"))
    with RunLog("adam", "report", "report", kind="execution", tags={"scale": params.scale}) as log:
        for path in sorted(reports.iterdir()):
            log.artifact(path)
    start_sync()


if __name__ == "__main__":
    run(main)
