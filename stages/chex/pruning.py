"""The stage that trains a row of a study's tables: one method and seed, on every part and at every FLOPs target.

Of every part and target: `<part>-<target>.safetensors`, the physically slim network, and `<part>-<target>.json` with the
history of its widths and the largest difference between its outputs and the masked network's.
"""

import json
import shutil
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from stages.chex.loop import fit
from stages.chex.method.slim import save_slim, slim
from stages.chex.rows import explorer_of, schedule_of
from stages.chex.study import Job, Part, Study
from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, start_device
from stages.common.stage.files import output_dir, write_atomic
from stages.common.stage.jobs import run_jobs
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, cell_arguments


def prune(study: Study[Part]) -> None:
    """Train and prune the cell of the matrix that the command line names."""
    cell = cell_arguments("one method and seed", method=tuple(study.rows), seed=int)
    inputs = [study.prepared, study.cell("dense", cell.seed)]
    with Stage(f"{study.name}-prune", study.section, inputs, cell.seed, cell.method) as stage:
        jobs, row = study.jobs(cell.method, cell.seed), study.rows[cell.method]
        parts = [study.parts[job.part] for job in jobs]
        steps = sum(schedule_of(row, part.steps, part.prune).steps for part in parts)
        with progress(f"{study.name}-prune {cell.method} seed {cell.seed}", steps) as bar:
            for job, _ in run_jobs(partial(prune_one, study=study, folder=stage.work), jobs):
                bar.note(f"{job.part} {job.target:g}")
        if not is_main():
            return
        with output_dir(study.cell(cell.method, cell.seed)) as output:
            for job in jobs:
                path = stage.work / study.file(job).name
                for file in (path, path.with_suffix(".json")):
                    shutil.copy(file, output)


def prune_one(job: Job[Part], study: Study[Part], folder: Path) -> None:
    """Train one network down to one target; leaves `<part>-<target>.safetensors` and `.json` in `folder`."""
    path = folder / study.file(job).name
    record = path.with_suffix(".json")
    if record.exists():
        return
    row, part, device = study.rows[job.method], study.parts[job.part], start_device()
    schedule = schedule_of(row, part.steps, part.prune)
    built = study.explored(job.part, job.seed, device)
    if schedule.finetune:
        half = study.cell("dense", job.seed) / f"{job.part}-half.safetensors"
        built.model.load_state_dict(load_file(half))
    assert job.target is not None
    budget = job.target * built.dense_macs
    explorer = explorer_of(
        row, built.model, built.groups, built.macs, budget, part.steps, part.prune, job.seed
    )
    task = study.task(job.part, schedule, job.seed, device)
    with study.run_log(job) as log:
        history = fit(
            built.model, explorer, task, schedule, device, log, Checkpoint(path.with_suffix(".ckpt"))
        )
    if not is_main():
        return
    network = slim(built.model.eval(), built.groups, explorer.masks)
    with torch.no_grad():
        masked, slimmed = (study.outputs(job.part, net, device) for net in (built.model, network))
    difference = max(float((a - b).abs().max()) for a, b in zip(masked, slimmed, strict=True))
    save_slim(network, path)
    content = {"slim_masked_difference": difference, "history": history}
    write_atomic(record, json.dumps(content))  # last: its presence says that the network is there too
