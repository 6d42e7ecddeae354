"""chex-points-evaluate: test every network that was trained, and count what is left of it.

Reads `data/chex-points/<scale>/`, `runs/chex-points/<scale>/pretrain/` and `prune/`. Writes
`runs/chex-points/<scale>/evaluate/`: `results.parquet` (tidy) and `widths.parquet` (active channels per group at
every choice of channels).
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from stages.chex.measures import torch_macs
from stages.chex.method.flops import count_macs, count_params
from stages.chex.points.cells import dense_model, example, key_of, network_of, setting_of
from stages.chex.points.data import PointData, accuracies
from stages.chex.points.params import PointsParams
from stages.common.results import results_frame, write_parquet
from stages.common.stage.device import start_device
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, git_revision, run
from stages.common.stage.tracking import RunLog

Job = tuple[str, float | None, int]  # method, FLOPs target (None: dense), seed
Row = dict[str, Any]


def main() -> None:
    """Evaluate all cells that the parameters name."""
    params = load_params(PointsParams, "chex-points")
    prepared, runs = Path("data/chex-points") / params.scale, Path("runs/chex-points") / params.scale
    cells = [runs / "prune" / f"{method}-{seed}" for method in params.methods for seed in params.seeds]
    inputs = [prepared, *(runs / "pretrain" / str(seed) for seed in params.seeds), *cells]
    jobs: list[Job] = [
        (method, target, seed)
        for seed in params.seeds
        for method, target in [("dense", None), *((m, t) for m in params.methods for t in params.prune.flops)]
    ]
    with Stage("chex-points-evaluate", params, inputs):
        rows: list[Row] = []
        widths: list[Row] = []
        with progress("chex-points-evaluate", len(jobs)) as bar:
            for job, numbers in run_jobs(
                partial(evaluate, params=params, prepared=prepared, runs=runs), jobs
            ):
                rows += tidy(job, numbers, params)
                widths += history(job, runs)
                bar.advance()
        with output_dir(runs / "evaluate") as output:
            write_parquet(results_frame(rows), output / "results.parquet")
            order = ["method", "target", "seed", "step"]
            write_parquet(
                pd.DataFrame(widths).sort_values(order, kind="stable", ignore_index=True),
                output / "widths.parquet",
            )


def evaluate(job: Job, params: PointsParams, prepared: Path, runs: Path) -> dict[str, tuple[float, str]]:
    """The numbers of one network, as metric -> (value, unit); they are also added to its MLflow run."""
    method, target, seed = job
    device = start_device()
    network, path = network_of(method, target, params, prepared, runs, seed, device)
    dense, _ = dense_model(params, prepared, seed, device)
    x_13P = example(params).to(device)
    macs, dense_macs = count_macs(network, x_13P), count_macs(dense, x_13P)
    accuracy, class_accuracy = accuracies(network, PointData(prepared, params.recipe, device))
    numbers: dict[str, tuple[float, str]] = {
        "accuracy": (accuracy, "%"),
        "class_accuracy": (class_accuracy, "%"),
        "macs": (macs, "MACs"),
        "macs_fraction": (macs / dense_macs, "of dense"),
        "params": (count_params(network), "count"),
        "torch_macs": (torch_macs(network, x_13P), "MACs"),
    }
    if target is not None:
        record = json.loads(path.with_suffix(".json").read_text())
        numbers["slim_masked_difference"] = (record["slim_masked_difference"], "max abs logit")
    with RunLog("chex-points", "", key_of(params, method, setting_of(target), seed), kind="amend") as log:
        log.metrics({metric: value for metric, (value, _) in numbers.items()})
        log.artifact(path)
    return numbers


def tidy(job: Job, numbers: dict[str, tuple[float, str]], params: PointsParams) -> list[Row]:
    """Rows of the results from the numbers of one network."""
    method, target, seed = job
    setting = setting_of(target)
    common = {
        "paper": "chex-points", "table": "T4", "method": method, "setting": setting, "seed": seed, "scale": params.scale,
        "data": params.data.name, "run_id": key_of(params, method, setting, seed), "git_rev": git_revision(),
    }  # fmt: skip
    return [
        {**common, "metric": metric, "value": value, "unit": unit}
        for metric, (value, unit) in numbers.items()
    ]


def history(job: Job, runs: Path) -> list[Row]:
    """Active channels per group at every choice of channels of one network."""
    method, target, seed = job
    if target is None:
        return []
    record = json.loads((runs / "prune" / f"{method}-{seed}" / f"{target:g}.json").read_text())
    return [
        {"method": method, "target": target, "seed": seed, "step": entry["step"], **entry["active"]}
        for entry in record["history"]
    ]


if __name__ == "__main__":
    run(main)
