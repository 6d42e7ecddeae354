"""adam-evaluate: all experiments in one table, and the theorem's bounds for what was measured.

Reads `runs/adam/<scale>/{rate,skewed,counterexamples,digits,minmax,compositional,bilevel,cifar10}/`. Writes
`runs/adam/<scale>/evaluate/`: `results.parquet` (tidy) and `curves.parquet` (means over seeds against steps).
"""

from pathlib import Path

import pandas as pd

from stages.adam.bounds import bound_rows
from stages.adam.params import AdamParams
from stages.adam.rate import problem, step_of
from stages.common.results import read_parquet, results_frame, write_parquet
from stages.common.stage.files import output_dir
from stages.common.stage.params import load_params
from stages.common.stage.run import Stage, run

EXPERIMENTS = (
    "rate", "skewed", "counterexamples", "digits", "minmax", "compositional", "bilevel", "cifar10"
)  # fmt: skip


def main() -> None:
    """Join and check."""
    params = load_params(AdamParams, "adam")
    runs = Path("runs/adam") / params.scale
    with Stage("adam-evaluate", params, [runs / name for name in EXPERIMENTS]):
        results = [read_parquet(runs / name / "results.parquet") for name in EXPERIMENTS]
        curves = [read_parquet(runs / name / "curves.parquet") for name in EXPERIMENTS]
        rows = [row for frame in results for row in frame.to_dict("records")]
        rates = results[0][results[0]["table"] == "T1"]
        rows += bound_rows(rates, problem(), step_of)
        with output_dir(runs / "evaluate") as output:
            write_parquet(results_frame(rows), output / "results.parquet")
            write_parquet(
                pd.concat([c for c in curves if len(c)], ignore_index=True), output / "curves.parquet"
            )


if __name__ == "__main__":
    run(main)
