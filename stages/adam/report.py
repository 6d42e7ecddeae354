"""adam: the comparison tables, the claims' verdicts and the figures.

Reads `runs/adam/<scale>/evaluate/`. Writes `reports/adam/<scale>/`: `results.parquet`, `table.md`, `claims.md`,
`claims.json` and figures.
"""

from pathlib import Path

from stages.adam.claims import check_claims
from stages.adam.figures import draw_figures
from stages.adam.params import AdamParams
from stages.adam.tables import tables_markdown
from stages.common.report.write import write_report
from stages.common.results import read_parquet
from stages.common.stage.params import load_params
from stages.common.stage.run import Stage, run


def main() -> None:
    """Write the report of the active scale."""
    params = load_params(AdamParams, "adam")
    evaluated = Path("runs/adam") / params.scale / "evaluate"
    with Stage("adam", params, [evaluated]):
        results = read_parquet(evaluated / "results.parquet")
        curves = read_parquet(evaluated / "curves.parquet")
        claims = check_claims(results, params)
        table = tables_markdown(results, params)
        write_report(
            "adam",
            params.scale,
            results,
            table,
            claims,
            lambda output: draw_figures(results, curves, params, output),
        )


if __name__ == "__main__":
    run(main)
