"""chex-detection-evaluate: test every detector that was trained, and count what is left of it.

Reads `data/chex-detection/<scale>/`, `runs/chex-detection/<scale>/pretrain/` and `prune/`. Writes
`runs/chex-detection/<scale>/evaluate/`: `results.parquet` (tidy) and `widths.parquet` (active channels per group at
every choice of channels, one row per group).
"""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from stages.chex.detection.cells import key_of, network_of, open_images, setting_of
from stages.chex.detection.networks import BODY, build
from stages.chex.detection.params import DetectionParams, DetectorName
from stages.chex.measures import torch_macs
from stages.chex.method.flops import count_macs, count_params
from stages.common.dense.average_precision import Kind, average_precision
from stages.common.dense.inference import detect
from stages.common.results import results_frame, write_parquet
from stages.common.stage.device import start_device
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, git_revision, run
from stages.common.stage.tracking import RunLog

Job = tuple[DetectorName, str, float | None, int]  # detector, method, FLOPs target (None: dense), seed
Row = dict[str, Any]
TABLES: dict[DetectorName, str] = {"ssd": "T2", "mask-rcnn": "T3"}
KINDS: dict[DetectorName, tuple[Kind, ...]] = {"ssd": ("bbox",), "mask-rcnn": ("bbox", "segm")}


def main() -> None:
    """Evaluate all cells that the parameters name."""
    params = load_params(DetectionParams, "chex-detection")
    prepared, runs = Path("data/chex-detection") / params.scale, Path("runs/chex-detection") / params.scale
    cells = [runs / "prune" / f"{method}-{seed}" for method in params.methods for seed in params.seeds]
    inputs = [prepared, *(runs / "pretrain" / str(seed) for seed in params.seeds), *cells]
    jobs: list[Job] = [
        (name, method, target, seed)
        for name, settings in params.detectors.items()
        for seed in params.seeds
        for method, target in [
            ("dense", None),
            *((m, t) for m in params.methods for t in settings.prune.flops),
        ]
    ]
    with Stage("chex-detection-evaluate", params, inputs):
        rows: list[Row] = []
        widths: list[Row] = []
        with progress("chex-detection-evaluate", len(jobs)) as bar:
            for job, numbers in run_jobs(
                partial(evaluate, params=params, prepared=prepared, runs=runs), jobs
            ):
                rows += tidy(job, numbers, params)
                widths += history(job, runs)
                bar.advance()
        with output_dir(runs / "evaluate") as output:
            write_parquet(results_frame(rows), output / "results.parquet")
            order = ["detector", "method", "target", "seed", "step"]
            write_parquet(
                pd.DataFrame(widths).sort_values(order, kind="stable", ignore_index=True),
                output / "widths.parquet",
            )


def evaluate(job: Job, params: DetectionParams, prepared: Path, runs: Path) -> dict[str, tuple[float, str]]:
    """The numbers of one detector, as metric -> (value, unit); they are also added to its MLflow run."""
    detector, method, target, seed = job
    device, settings = start_device(), params.detectors[detector]
    network, path = network_of(detector, method, target, params, runs, seed, device)
    dense = build(detector, settings.net, params.classes, seed, device)
    body = network.get_submodule(BODY[detector])
    macs, dense_macs = count_macs(body, dense.example), count_macs(dense.body, dense.example)
    numbers: dict[str, tuple[float, str]] = {
        "body_macs": (macs, "MACs"),
        "body_macs_fraction": (macs / dense_macs, "of dense"),
        "body_torch_macs": (torch_macs(body, dense.example), "MACs"),
        "params": (count_params(network), "count"),
    }
    if detector == "ssd":  # Mask R-CNN's heads cost what there is to see
        numbers["macs"] = (count_macs(network.get_submodule("net"), dense.example), "MACs")
    images = open_images(prepared, "val", detector)
    truth, found = images.ground_truth(), detect(network, images, device, settings.recipe.workers)
    for kind in KINDS[detector]:
        for name, value in average_precision(truth, found, kind).items():
            if not math.isnan(value):  # of a size that no object has
                numbers[f"{kind}_{name}"] = (value, "%")
    if target is not None:
        record = json.loads(path.with_suffix(".json").read_text())
        numbers["slim_masked_difference"] = (record["slim_masked_difference"], "max abs")
    with RunLog(
        "chex-detection", "", key_of(params, detector, method, setting_of(target), seed), kind="amend"
    ) as log:
        log.metrics({metric: value for metric, (value, _) in numbers.items()})
        log.artifact(path)
    return numbers


def tidy(job: Job, numbers: dict[str, tuple[float, str]], params: DetectionParams) -> list[Row]:
    """Rows of the results from the numbers of one detector."""
    detector, method, target, seed = job
    setting = setting_of(target)
    common = {
        "paper": "chex-detection", "table": TABLES[detector], "method": method, "setting": setting, "seed": seed,
        "scale": params.scale, "data": params.data.kind, "run_id": key_of(params, detector, method, setting, seed),
        "git_rev": git_revision(),
    }  # fmt: skip
    return [
        {**common, "metric": metric, "value": value, "unit": unit}
        for metric, (value, unit) in numbers.items()
    ]


def history(job: Job, runs: Path) -> list[Row]:
    """Active channels of every group at every choice of channels of one detector."""
    detector, method, target, seed = job
    if target is None:
        return []
    record = json.loads((runs / "prune" / f"{method}-{seed}" / f"{detector}-{target:g}.json").read_text())
    common = {"detector": detector, "method": method, "target": target, "seed": seed}
    return [
        {**common, "step": entry["step"], "group": group, "active": active}
        for entry in record["history"]
        for group, active in entry["active"].items()
    ]


if __name__ == "__main__":
    run(main)
