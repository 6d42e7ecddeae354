"""elsa-dense-evaluate: average precision of the detectors, mean IoU of the segmentors, sizes of the full-size networks.

Reads `data/elsa-dense/<scale>/` and `runs/elsa-dense/<scale>/train/`. Writes
`runs/elsa-dense/<scale>/evaluate/results.parquet` (tidy): T2 detection, T3 segmentation; setting "Mask R-CNN" or "UPerNet"
for rows that were trained, "full size" for the parameters of the published networks.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from stages.common.dense.average_precision import Kind, average_precision
from stages.common.dense.coco import CocoImages
from stages.common.dense.inference import detect, segment
from stages.common.dense.mean_iou import mean_iou
from stages.common.results import results_frame, write_parquet
from stages.common.stage.device import start_device
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, git_revision, run
from stages.common.stage.tracking import RunLog, run_key
from stages.elsa.dense.cells import FULL_SIZE, TASKS, data_name, key_of, section_of
from stages.elsa.dense.data import class_count, open_data
from stages.elsa.dense.networks import build_network, full_size
from stages.elsa.dense.params import ElsaDenseParams, Task
from stages.elsa.params import MixerName

Cell = tuple[Task, MixerName, int]
Row = dict[str, Any]
KINDS: dict[str, Kind] = {"box": "bbox", "mask": "segm"}
TABLES: dict[Task, str] = {"detection": "T2", "segmentation": "T3"}
HEADS: dict[Task, str] = {"detection": "Mask R-CNN", "segmentation": "UPerNet"}


def main() -> None:
    """Evaluate all cells that the parameters name."""
    params = load_params(ElsaDenseParams, "elsa-dense")
    prepared, runs = Path("data/elsa-dense") / params.scale, Path("runs/elsa-dense") / params.scale
    pairs = [(mixer, seed) for mixer in params.mixers for seed in params.seeds]
    with Stage("elsa-dense-evaluate", params, [prepared, *(runs / "train" / f"{m}-{s}" for m, s in pairs)]):
        cells: list[Cell] = [(task, mixer, seed) for mixer, seed in pairs for task in TASKS]
        rows = sizes(params)
        work = partial(evaluate, params=params, prepared=prepared, runs=runs)
        with progress("elsa-dense-evaluate", len(cells)) as bar:
            for cell, found in run_jobs(work, cells):
                rows += found
                bar.advance(note=" ".join(map(str, cell)))
        with output_dir(runs / "evaluate") as output:
            write_parquet(results_frame(rows), output / "results.parquet")


def evaluate(cell: Cell, params: ElsaDenseParams, prepared: Path, runs: Path) -> list[Row]:
    """Rows of one network; its numbers are also added to its MLflow run."""
    task, mixer, seed = cell
    device, images = start_device(), open_data(task, prepared, "val", params)
    model, _ = build_network(task, mixer, seed, class_count(images), params)
    weights = runs / "train" / f"{mixer}-{seed}" / f"{task}.safetensors"
    model.load_state_dict(load_file(weights))
    model.to(device)
    workers = section_of(params, task).recipe.workers
    if isinstance(images, CocoImages):
        found, truth = detect(model, images, device, workers), images.ground_truth()
        numbers: dict[str, float] = {}
        for name, kind in KINDS.items():
            precision = average_precision(truth, found, kind)
            numbers |= {f"{name}_{metric.lower()}": precision[metric] for metric in ("AP", "AP50", "AP75")}
    else:
        ratios = params.segmentation.ratios
        numbers = {
            "miou": mean_iou(segment(model, images, device, workers=workers)),
            "miou_ms_flip": mean_iou(segment(model, images, device, ratios, True, workers)),
        }
    key = key_of(params, task, mixer, seed)
    with RunLog("elsa-dense", f"{task} {mixer} seed {seed}", key, kind="amend") as log:
        log.metrics(numbers, section_of(params, task).recipe.steps)
        log.artifact(weights)
    numbers["params"] = sum(p.numel() for p in model.parameters()) / 1e6
    return [_row(params, task, mixer, HEADS[task], m, v, seed, key) for m, v in numbers.items()]


def sizes(params: ElsaDenseParams) -> list[Row]:
    """Parameters of the published networks, counted without making their weights."""
    rows = []
    for task in TASKS:
        for name, build in full_size(task).items():
            with torch.device("meta"):
                count = sum(p.numel() for p in build().parameters()) / 1e6
            key = run_key("elsa-dense", FULL_SIZE, task, name)
            rows.append(_row(params, task, name, FULL_SIZE, "params", count, 0, key) | {"data": "none"})
    return rows


def _row(
    params: ElsaDenseParams, task: Task, method: str, setting: str, metric: str, value: float, seed: int, key: str
) -> Row:  # fmt: skip
    return {
        "paper": "elsa-dense", "table": TABLES[task], "method": method, "setting": setting, "metric": metric,
        "value": value, "unit": "M" if metric == "params" else "%", "seed": seed, "scale": params.scale,
        "data": data_name(params, task), "run_id": key, "git_rev": git_revision(),
    }  # fmt: skip


if __name__ == "__main__":
    run(main)
