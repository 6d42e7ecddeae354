"""uot-evaluate: test every fine-tuned model, and judge every selection.

Reads `data/uot/<scale>/`, `runs/uot/<scale>/select/` and `finetune/`. Writes
`runs/uot/<scale>/evaluate/results.parquet` (tidy): table T2 has one row per fine-tuning and metric (the
sweeps T3 and T4 are told by their setting), T8 the purity of selections.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from stages.common.results import results_frame, write_parquet
from stages.common.stage.device import start_device
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, git_revision, run
from stages.common.stage.tracking import RunLog, run_key
from stages.uot.cells import Job, jobs_of, key_of
from stages.uot.data import PreparedData
from stages.uot.method.backbones import WIDTHS, build_backbone
from stages.uot.method.dual_head import DualHeadModel
from stages.uot.method.metrics import mean_per_class_accuracy, top_k
from stages.uot.method.selection import SELECTION_METHODS, concept_purity, overlap
from stages.uot.params import SelectionName, UotParams
from stages.uot.training import target_logits

Cell = tuple[SelectionName, int]
Row = dict[str, Any]


def main() -> None:
    """Evaluate all cells that the parameters name."""
    params = load_params(UotParams, "uot")
    prepared, runs = Path("data/uot") / params.scale, Path("runs/uot") / params.scale
    cells: list[Cell] = [(selection, seed) for seed in params.seeds for selection in params.selections]
    inputs = [prepared, runs / "select", *(runs / "finetune" / f"{s}-{seed}" for s, seed in cells)]
    with Stage("uot-evaluate", params, inputs):
        rows: list[Row] = []
        with progress("uot-evaluate", len(cells)) as bar:
            work = partial(evaluate, params=params, prepared=prepared, runs=runs)
            for _, numbers in run_jobs(work, cells):
                rows += numbers
                bar.advance()
        for seed in params.seeds:
            rows += judge_selections(seed, params, prepared, runs)
        with output_dir(runs / "evaluate") as output:
            write_parquet(results_frame(rows), output / "results.parquet")


def evaluate(cell: Cell, params: UotParams, prepared: Path, runs: Path) -> list[Row]:
    """Rows of all models of one cell; their numbers are also added to their MLflow runs."""
    selection, seed = cell
    device = start_device()
    data = PreparedData(prepared / str(seed), device)
    rows: list[Row] = []
    for job in jobs_of(selection, params):
        path = runs / "finetune" / f"{selection}-{seed}" / f"{job.name}.safetensors"
        net = params.pretraining[job.pretraining].net
        sizes = WIDTHS[net], len(data.source_groups), data.target_classes(job.target)
        model = DualHeadModel(build_backbone(net), *sizes).to(device)
        model.load_state_dict(load_file(path))
        logits, labels = target_logits(model, data.test(job.target))
        record = json.loads(path.with_suffix(".json").read_text())
        numbers = {
            "top1": top_k(logits, labels),
            "mean per class": mean_per_class_accuracy(logits, labels),
            "best top1": max(record["test_top1"]),  # chosen on the test set, as the official number is
        }
        with RunLog("uot", "", key_of(params, job, seed), kind="amend") as log:
            log.metrics(numbers)
            log.artifact(path)
        rows += [tidy(params, job, seed, metric, value) for metric, value in numbers.items()]
    return rows


def tidy(params: UotParams, job: Job, seed: int, metric: str, value: float) -> Row:
    """One row of the results."""
    return {
        "paper": "uot",
        "table": "T2",
        "method": job.row,
        "setting": job.setting,
        "metric": metric,
        "value": value,
        "unit": "%",
        "seed": seed,
        "scale": params.scale,
        "data": job.target,
        "run_id": key_of(params, job, seed),
        "git_rev": git_revision(),
    }


def judge_selections(seed: int, params: UotParams, prepared: Path, runs: Path) -> list[Row]:
    """Overlap with uot of every method's selection of one seed, and purity where concepts are known."""
    data = PreparedData(prepared / str(seed), start_device())
    rows: list[Row] = []
    for pretraining in params.pretraining:
        files = {
            target: (f"{params.finetune.fraction:g}", data.relevant_groups(target))
            for target in params.targets
        }
        if data.arrays:
            files["mixed"] = "1", {str(group) for group in data.arrays["mixed_group"].tolist()}  # type: ignore[index]
        for target, (fraction, relevant) in files.items():
            path = runs / "select" / str(seed) / f"{pretraining}-{target}.json"
            rankings = json.loads(path.read_text())[fraction]
            in_relevant = sum(group in relevant for group in data.source_groups)
            k = in_relevant if target == "mixed" else params.select.k
            chosen = {
                method: rankings[method]["order"][:k] for method in SELECTION_METHODS if method != "all"
            }
            for method, classes in chosen.items():
                numbers = {"overlap": 100 * overlap(chosen["uot"], classes)}
                if relevant:
                    numbers["purity"] = 100 * concept_purity(classes, data.source_groups, relevant)
                rows += [
                    {
                        "paper": "uot",
                        "table": "T8",
                        "method": method,
                        "setting": f"{pretraining}, K {k}",
                        "metric": metric,
                        "value": value,
                        "unit": "%",
                        "seed": seed,
                        "scale": params.scale,
                        "data": target,
                        "run_id": run_key("uot", params.scale, "select", pretraining, target, seed),
                        "git_rev": git_revision(),
                    }
                    for metric, value in numbers.items()
                ]
    return rows


if __name__ == "__main__":
    run(main)
