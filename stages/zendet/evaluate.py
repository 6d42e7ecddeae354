"""zendet-evaluate: average precision of every detector, and what every search found.

Reads `data/zendet/<scale>/`, `runs/zendet/<scale>/search/` and `train/`. Writes
`runs/zendet/<scale>/evaluate/results.parquet` (tidy): table T1 has the detectors (setting: the head), T2 the ablation of
the search, T3 the strategies; their entropy is always the analytic one with the detection alphas.
"""

import json
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from stages.common.dense.average_precision import COCO_AREAS, average_precision
from stages.common.dense.coco import open_coco
from stages.common.dense.inference import detect
from stages.common.results import results_frame, write_parquet
from stages.common.stage.device import start_device
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, git_revision, run
from stages.common.stage.tracking import RunLog, run_key
from stages.zendet.cells import key_of, search_jobs
from stages.zendet.detector import build_detector
from stages.zendet.method.cost import count_flops, count_layers, count_params
from stages.zendet.method.entropy import EntropyScorer
from stages.zendet.method.structure import read_structure
from stages.zendet.params import HeadName, Strategy, ZendetParams

Job = tuple[Strategy, HeadName, int]
Row = dict[str, Any]
SCENE_AREAS = (16, 32)  # sides between small, medium and large objects of scenes, pixels
UNITS = {
    "flops": "M",
    "params": "M",
    "layers": "count",
    "entropy": "nats",
    "score": "1",
    "evaluations": "count",
}


def main() -> None:
    """Evaluate all cells that the parameters name."""
    params = load_params(ZendetParams, "zendet")
    prepared, runs = Path("data/zendet") / params.scale, Path("runs/zendet") / params.scale
    searched = [(strategy, seed) for strategy in params.strategies for seed in params.seeds]
    inputs = [prepared, *(runs / "train" / backbone for backbone in params.backbones)]
    inputs += [runs / "search" / strategy / str(seed) for strategy, seed in searched]
    with Stage("zendet-evaluate", params, inputs):
        jobs: list[Job] = list(product(params.backbones, params.heads, params.seeds))
        rows: list[Row] = []
        work = partial(evaluate, params=params, prepared=prepared, runs=runs)
        with progress("zendet-evaluate", len(jobs)) as bar:
            for (backbone, head, seed), found in run_jobs(work, jobs):
                rows += found
                bar.advance(note=f"{backbone} {head} {seed}")
        for strategy, seed in searched:
            folder = runs / "search" / strategy / str(seed)
            for job in search_jobs(strategy):
                record = json.loads((folder / f"{job.name}.json").read_text())
                history = record.pop("history")
                numbers = {
                    **record,
                    "flops": record["flops"] / 1e6,
                    "params": record["params"] / 1e6,
                    "evaluations": history[-1]["evaluations"] if history else 0,
                }
                key = run_key(
                    "zendet", params.scale, "search", strategy, job.name, seed, params.search.model_dump()
                )
                tables = ["T3"] if job.name == "main" else []
                tables += ["T2"] if strategy == "entropy" else []
                for table in tables:
                    method = job.name if table == "T2" else strategy
                    rows += [
                        tidy(params, table, method, "search", metric, value, seed, "none", key)
                        for metric, value in numbers.items()
                    ]
        with output_dir(runs / "evaluate") as output:
            write_parquet(results_frame(rows), output / "results.parquet")


def evaluate(job: Job, params: ZendetParams, prepared: Path, runs: Path) -> list[Row]:
    """Rows of one detector; its numbers are also added to its MLflow run."""
    backbone, head, seed = job
    device, images = start_device(), open_coco(prepared, "val", first_label=0, masks=False)
    scenes = params.data.kind == "scenes"
    folder = runs / "train" / backbone
    structure_file, detector_file = folder / f"structure-{seed}.txt", folder / f"{head}-{seed}.safetensors"
    structure = read_structure(structure_file)
    model = build_detector(structure, head, len(images.categories), params.detector)
    model.load_state_dict(load_file(detector_file))
    found = detect(model.to(device), images, device, params.train.workers)
    areas = SCENE_AREAS if scenes else COCO_AREAS
    precision = average_precision(images.ground_truth(), found, areas=areas)
    numbers = precision | {
        "flops": count_flops(structure, params.image_size) / 1e6,
        "params": count_params(structure) / 1e6,
        "layers": count_layers(structure),
        "entropy": EntropyScorer(params.image_size)(structure),
    }
    key = key_of(params, backbone, structure, head, seed)
    with RunLog("zendet", "", key, kind="amend") as log:
        log.metrics({name: value for name, value in numbers.items() if value == value})
        log.artifact(detector_file)
        log.artifact(structure_file)
    data = "scenes" if scenes else "coco"
    return [tidy(params, "T1", backbone, head, m, v, seed, data, key) for m, v in numbers.items()]


def tidy(
    params: ZendetParams,
    table: str,
    method: str,
    setting: str,
    metric: str,
    value: float,
    seed: int,
    data: str,
    key: str,
) -> Row:
    """One row of the results."""
    return {
        "paper": "zendet",
        "table": table,
        "method": method,
        "setting": setting,
        "metric": metric,
        "value": value,
        "unit": UNITS.get(metric, "%" if metric.startswith("AP") else "1"),
        "seed": seed,
        "scale": params.scale,
        "data": data,
        "run_id": key,
        "git_rev": git_revision(),
    }


if __name__ == "__main__":
    run(main)
