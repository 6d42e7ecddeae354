"""chex-pretrain: train the dense networks of one seed.

Reads `data/chex/<scale>/`. Writes `runs/chex/<scale>/pretrain/<seed>/`, per data set:
`<data>-dense.safetensors`, trained for all steps (the dense row), and `<data>-half.safetensors`, trained for
half of them (where the prune-after-training rows start).
"""

import shutil
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from stages.chex.cells import dense_model, run_log
from stages.chex.data import open_data
from stages.chex.method.explorer import ChannelExplorer, ExplorerConfig
from stages.chex.params import ChexParams, DataName
from stages.chex.training import Schedule, fit
from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, start_device
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, cell_arguments, run

Job = tuple[DataName, str]
SHARE = {"dense": 1.0, "half": 0.5}  # of the training steps


def main() -> None:
    """Train both dense networks of every data set."""
    seed = cell_arguments("dense networks of one seed", seed=int).seed
    params = load_params(ChexParams, "chex")
    prepared = Path("data/chex") / params.scale
    with Stage("chex-pretrain", params, [prepared], seed) as stage:
        jobs: list[Job] = [(name, length) for name in params.data for length in SHARE]
        work = partial(train_dense, params=params, prepared=prepared, seed=seed, folder=stage.work)
        steps = sum(steps_of(params, *job) for job in jobs)
        with progress(f"chex-pretrain seed {seed}", steps) as bar:
            for (name, length), _ in run_jobs(work, jobs):
                bar.note(f"{name} {length}")
        if not is_main():
            return
        with output_dir(Path("runs/chex") / params.scale / "pretrain" / str(seed)) as output:
            for name, length in jobs:
                shutil.copy(stage.work / f"{name}-{length}.safetensors", output)


def steps_of(params: ChexParams, name: DataName, length: str) -> int:
    """Training steps of one dense network."""
    return int(params.data[name].steps * SHARE[length])


def train_dense(job: Job, params: ChexParams, prepared: Path, seed: int, folder: Path) -> None:
    """Train one dense network; leaves `<data>-<length>.safetensors` in `folder`."""
    name, length = job
    path = folder / f"{name}-{length}.safetensors"
    if path.exists():
        return
    recipe, device = params.data[name], start_device()
    model, groups = dense_model(name, recipe, seed, device)
    dense = ChannelExplorer(model, groups, ExplorerConfig(t_max=0, period=1, sparsity=0.0), torch.Generator())
    schedule = Schedule(steps_of(params, name, length), recipe.lr)
    with run_log(params, name, "dense", length, seed) as log:
        data = open_data(prepared, name, recipe, device)
        checkpoint = Checkpoint(folder / f"{name}-{length}.ckpt")
        fit(model, groups, dense, data, recipe, schedule, seed, log, checkpoint)
    if is_main():
        save_file(model.state_dict(), path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)


if __name__ == "__main__":
    run(main)
