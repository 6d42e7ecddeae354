"""The stage that trains a study's dense networks.

Of every part: `<part>-dense.safetensors`, trained for all steps (the dense row), and `<part>-half.safetensors`, trained for
half of them (where the prune-after-training rows start).
"""

import shutil
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from stages.chex.loop import fit
from stages.chex.method.explorer import ChannelExplorer, ExplorerConfig
from stages.chex.rows import Schedule
from stages.chex.study import Job, Part, Study
from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, start_device
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, cell_arguments

SHARE = {"dense": 1.0, "half": 0.5}  # of the training steps


def pretrain(study: Study[Part]) -> None:
    """Train both dense networks of every part for the seed that the command line names."""
    seed = cell_arguments("dense networks of one seed", seed=int).seed
    with Stage(f"{study.name}-pretrain", study.section, [study.prepared], seed) as stage:
        jobs = [(part, length) for part in study.parts for length in SHARE]
        work = partial(train_dense, study=study, seed=seed, folder=stage.work)
        steps = sum(int(study.parts[part].steps * SHARE[length]) for part, length in jobs)
        with progress(f"{study.name}-pretrain seed {seed}", steps) as bar:
            for (part, length), _ in run_jobs(work, jobs):
                bar.note(f"{part} {length}")
        if not is_main():
            return
        with output_dir(study.cell("dense", seed)) as output:
            for part, length in jobs:
                shutil.copy(stage.work / f"{part}-{length}.safetensors", output)


def train_dense(job: tuple[Part, str], study: Study[Part], seed: int, folder: Path) -> None:
    """Train one dense network; leaves `<part>-<length>.safetensors` in `folder`."""
    part, length = job
    path = folder / f"{part}-{length}.safetensors"
    if path.exists():
        return
    device, schedule = start_device(), Schedule(int(study.parts[part].steps * SHARE[length]))
    model = study.network(part, seed).to(device)
    dense = ChannelExplorer(model, [], ExplorerConfig(t_max=0, period=1, sparsity=0.0), torch.Generator())
    task = study.task(part, schedule, seed, device)
    with study.run_log(Job(part, length, None, seed), f"dense {part} {length} seed {seed}") as log:
        fit(model, dense, task, schedule, device, log, Checkpoint(folder / f"{part}-{length}.ckpt"))
    if is_main():
        save_file(model.state_dict(), path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
