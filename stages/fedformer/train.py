"""fedformer-train: one model and seed, on every data set, feature set, horizon and variation that names it.

Reads `data/fedformer/<scale>/`. Writes `runs/fedformer/<scale>/train/<model>-<seed>/`, per training:
`<job>.safetensors`, the weights of the best epoch with the selected modes among them, and `<job>.json`, the
errors per epoch.
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
from stages.fedformer.cells import Job, build_model, jobs_of, open_job, run_log
from stages.fedformer.params import FedformerParams, ModelName
from stages.fedformer.training import fit


def main() -> None:
    """Train one cell of the matrix."""
    params = load_params(FedformerParams, "fedformer")
    cell = cell_arguments("one model and seed", model=tuple(params.models), seed=int)
    prepared = Path("data/fedformer") / params.scale
    with Stage("fedformer-train", params, [prepared], cell.seed, cell.model) as stage:
        jobs = jobs_of(params, cell.model)
        work = partial(
            train, model=cell.model, seed=cell.seed, params=params, prepared=prepared, folder=stage.work
        )
        with progress(f"fedformer-train {cell.model} seed {cell.seed}", len(jobs)) as bar:
            for job, _ in run_jobs(work, jobs):
                bar.advance(note=job.stem)
        if not is_main():
            return
        with output_dir(
            Path("runs/fedformer") / params.scale / "train" / f"{cell.model}-{cell.seed}"
        ) as output:
            for job in jobs:
                for suffix in ("safetensors", "json"):
                    shutil.copy(stage.work / f"{job.stem}.{suffix}", output)


def train(
    job: Job, model: ModelName, seed: int, params: FedformerParams, prepared: Path, folder: Path
) -> None:
    """One training; leaves `<job>.safetensors` and `.json` in `folder`."""
    path = folder / f"{job.stem}.json"
    if path.exists():
        return
    recipe, device = params.data[job.data], start_device()
    series = open_job(prepared, job, device)
    network = build_model(model, job, recipe, series.values_TC.shape[1], seed).to(device)
    lr = recipe.linear_lr if model in ("dlinear", "nlinear") else recipe.lr
    with run_log(params, job, model, seed) as log:
        checkpoint = Checkpoint(folder / f"{job.stem}.ckpt")
        history = fit(network, series, recipe, job.horizon, lr, seed, log.metrics, checkpoint)
    if is_main():
        save_file(network.state_dict(), path.with_suffix(".part"))
        path.with_suffix(".part").rename(path.with_suffix(".safetensors"))
        write_atomic(path, json.dumps(history))  # last: its presence says that the weights are there too


if __name__ == "__main__":
    run(main)
