"""chex-detection-pretrain: train the dense detectors of one seed.

Reads `data/chex-detection/<scale>/`. Writes `runs/chex-detection/<scale>/pretrain/<seed>/`, per detector:
`<detector>-dense.safetensors`, trained for all steps (the dense row), and `<detector>-half.safetensors`, trained for half of
them (where the prune-after-training rows start).
"""

import shutil
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from stages.chex.detection.cells import run_log
from stages.chex.detection.networks import build
from stages.chex.detection.params import DetectionParams, DetectorName
from stages.chex.detection.training import task_of
from stages.chex.method.explorer import ChannelExplorer, ExplorerConfig
from stages.chex.rows import Schedule
from stages.chex.sub_training import fit
from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, start_device
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, cell_arguments, run

Job = tuple[DetectorName, str]
SHARE = {"dense": 1.0, "half": 0.5}  # of the training steps


def main() -> None:
    """Train both dense networks of every detector."""
    seed = cell_arguments("dense detectors of one seed", seed=int).seed
    params = load_params(DetectionParams, "chex-detection")
    prepared = Path("data/chex-detection") / params.scale
    with Stage("chex-detection-pretrain", params, [prepared], seed) as stage:
        jobs: list[Job] = [(detector, length) for detector in params.detectors for length in SHARE]
        work = partial(train_dense, params=params, prepared=prepared, seed=seed, folder=stage.work)
        steps = sum(steps_of(params, *job) for job in jobs)
        with progress(f"chex-detection-pretrain seed {seed}", steps) as bar:
            for (detector, length), _ in run_jobs(work, jobs):
                bar.note(f"{detector} {length}")
        if not is_main():
            return
        with output_dir(Path("runs/chex-detection") / params.scale / "pretrain" / str(seed)) as output:
            for detector, length in jobs:
                shutil.copy(stage.work / f"{detector}-{length}.safetensors", output)


def steps_of(params: DetectionParams, detector: DetectorName, length: str) -> int:
    """Training steps of one dense network."""
    return int(params.detectors[detector].recipe.steps * SHARE[length])


def train_dense(job: Job, params: DetectionParams, prepared: Path, seed: int, folder: Path) -> None:
    """Train one dense detector; leaves `<detector>-<length>.safetensors` in `folder`."""
    detector, length = job
    path = folder / f"{detector}-{length}.safetensors"
    if path.exists():
        return
    settings, device = params.detectors[detector], start_device()
    built = build(detector, settings.net, params.classes, seed, device)
    config = ExplorerConfig(t_max=0, period=1, sparsity=0.0)
    dense = ChannelExplorer(built.model, built.groups, config, torch.Generator())
    schedule = Schedule(steps_of(params, detector, length))
    task = task_of(detector, settings, prepared, schedule, seed, device)
    with run_log(params, detector, length, "dense", seed) as log:
        checkpoint = Checkpoint(folder / f"{detector}-{length}.ckpt")
        fit(built.model, built.groups, dense, task, schedule, device, log, checkpoint)
    if is_main():
        save_file(built.model.state_dict(), path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)


if __name__ == "__main__":
    run(main)
