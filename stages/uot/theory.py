"""uot-theory.

How the excess risk of SGD depends on the start and on a source, by simulation (card, claims 6 and 7).

Reads nothing. Writes `runs/uot/<scale>/theory/results.parquet`: tidy rows of table T5 (samples x start) and
T6 (delta x alpha).
"""

from functools import partial
from pathlib import Path

from stages.common.results import results_frame, write_parquet
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, git_revision, run
from stages.common.stage.tracking import run_key
from stages.uot.method.excess_risk import Point, excess_risk
from stages.uot.params import UotParams

SAMPLES, STARTS = (64, 256, 1024, 4096), (0.1, 1.0, 5.0)
JOINT_SAMPLES, JOINT_START = 512, 0.5
ALPHAS, DELTAS = (0.0, 0.25, 0.5, 0.75, 1.0), (0.0, 0.1, 0.2, 0.5, 1.0)

Key = tuple[str, int, Point]  # table, samples, experiment


def main() -> None:
    """Simulate every point for every seed."""
    params = load_params(UotParams, "uot")
    with Stage("uot-theory", params, []):
        rows = []
        with progress("uot-theory", len(params.seeds)) as bar:
            for seed, values in run_jobs(partial(simulate, trials=params.theory.trials), params.seeds):
                for (table, samples, point), value in values.items():
                    row = {
                        "paper": "uot",
                        "table": table,
                        "method": f"alpha {point.alpha:g}",
                        "metric": "excess risk",
                        "value": value,
                        "setting": f"n {samples}, start {point.start:g}, delta {point.delta:g}",
                        "unit": "1",
                        "seed": seed,
                        "scale": params.scale,
                        "data": "linear regression",
                        "git_rev": git_revision(),
                        "run_id": run_key("uot", params.scale, "theory", params.theory.trials, seed),
                    }
                    rows.append(row)
                bar.advance()
        with output_dir(Path("runs/uot") / params.scale / "theory") as output:
            write_parquet(results_frame(rows), output / "results.parquet")


def simulate(seed: int, trials: int) -> dict[Key, float]:
    """Excess risk at every point of both tables."""
    starts = [Point(start) for start in STARTS]
    joint = [Point(JOINT_START, alpha, delta) for alpha in ALPHAS for delta in DELTAS]
    tables = [*(("T5", samples, starts) for samples in SAMPLES), ("T6", JOINT_SAMPLES, joint)]
    return {
        (table, samples, point): value
        for table, samples, points in tables
        for point, value in zip(points, excess_risk(samples, points, trials, seed), strict=True)
    }


if __name__ == "__main__":
    run(main)
