"""uot-finetune: one selection of source classes and seed, on every target and from every start.

Reads `data/uot/<scale>/<seed>/`, `runs/uot/<scale>/pretrain/<seed>/` and `select/<seed>/`. Writes
`runs/uot/<scale>/finetune/<selection>-<seed>/`, per fine-tuning: `<name>.safetensors`, the model, and
`<name>.json` with its test accuracy over training and the source classes that it used. Selection `none` has
the rows without source data.
"""

import json
import shutil
from functools import partial
from pathlib import Path

from safetensors.torch import save_file

from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, start_device
from stages.common.stage.files import output_dir, write_atomic
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, cell_arguments, run
from stages.uot.cells import JOINT, ROWS, Job, dual_head, jobs_of, run_log
from stages.uot.data import PreparedData
from stages.uot.method.selection import SELECTION_METHODS
from stages.uot.params import SelectionName, UotParams
from stages.uot.training import Plan, finetune


def main() -> None:
    """Fine-tune one cell of the matrix."""
    cell = cell_arguments("one selection and seed", selection=("none", *SELECTION_METHODS), seed=int)
    params = load_params(UotParams, "uot")
    prepared, runs = Path("data/uot") / params.scale / str(cell.seed), Path("runs/uot") / params.scale
    pretrained, rankings = runs / "pretrain" / str(cell.seed), runs / "select" / str(cell.seed)
    with Stage("uot-finetune", params, [prepared, pretrained, rankings], cell.seed, cell.selection) as stage:
        jobs = jobs_of(cell.selection, params)
        work = partial(
            train,
            selection=cell.selection,
            seed=cell.seed,
            params=params,
            prepared=prepared,
            pretrained=pretrained,
            rankings=rankings,
            folder=stage.work,
        )
        with progress(f"uot-finetune {cell.selection} seed {cell.seed}", len(jobs)) as bar:
            for job, _ in run_jobs(work, jobs):
                bar.advance(note=job.name)
        if not is_main():
            return
        with output_dir(runs / "finetune" / f"{cell.selection}-{cell.seed}") as output:
            for job in jobs:
                for suffix in ("safetensors", "json"):
                    shutil.copy(stage.work / f"{job.name}.{suffix}", output)


def train(
    job: Job,
    selection: SelectionName,
    seed: int,
    params: UotParams,
    prepared: Path,
    pretrained: Path,
    rankings: Path,
    folder: Path,
) -> None:
    """Fine-tune one model; leaves `<name>.safetensors` and `<name>.json` in `folder`."""
    path = folder / f"{job.name}.json"
    if path.exists():
        return
    device, row, recipe = start_device(), ROWS.get(job.row, JOINT), params.finetune
    data = PreparedData(prepared, device)
    chosen: list[int] = []
    if row.source != "none":
        ranked = json.loads((rankings / f"{job.pretraining}-{job.target}.json").read_text())
        order: list[int] = ranked[f"{job.fraction:g}"][selection]["order"]
        chosen = order[: job.k] if job.k else order
    target = data.target(job.target, job.fraction)
    per_unit = 1 if recipe.unit == "steps" else max(1, len(target) // recipe.batch)
    plan = Plan(
        target,
        data.test(job.target),
        data.source(chosen) if chosen else None,
        recipe.length * per_unit * row.length,
        job.weight,
    )
    model = dual_head(job, params, data, seed, pretrained, device)
    start, checkpoint = params.pretraining[job.pretraining], Checkpoint(folder / f"{job.name}.ckpt")
    with run_log(params, job, seed) as log:
        history = finetune(model, row, plan, start, recipe, seed, log, checkpoint)
    if not is_main():
        return
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, path.with_suffix(".safetensors"))
    # last: its presence says that the model is there too
    write_atomic(path, json.dumps({"test_top1": history, "source_classes": sorted(chosen)}))


if __name__ == "__main__":
    run(main)
