"""chex-points-pretrain: train the dense networks of one seed.

Reads `data/chex-points/<scale>/`. Writes `runs/chex-points/<scale>/pretrain/<seed>/`: `dense.safetensors`, trained
for all steps (the dense row), and `half.safetensors`, trained for half of them (where the prune-after-training rows
start).
"""

import shutil
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from stages.chex.method.explorer import ChannelExplorer, ExplorerConfig
from stages.chex.points.cells import dense_model, run_log
from stages.chex.points.params import PointsParams
from stages.chex.points.training import task_of
from stages.chex.rows import Schedule
from stages.chex.sub_training import fit
from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import start_device
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, cell_arguments, run


def main() -> None:
    """Train both dense networks."""
    seed = cell_arguments("dense networks of one seed", seed=int).seed
    params = load_params(PointsParams, "chex-points")
    prepared = Path("data/chex-points") / params.scale
    with Stage("chex-points-pretrain", params, [prepared], seed) as stage:
        lengths = {"dense": params.recipe.steps, "half": params.recipe.steps // 2}
        work = partial(
            train_dense, lengths=lengths, params=params, prepared=prepared, seed=seed, folder=stage.work
        )
        with progress(f"chex-points-pretrain seed {seed}", sum(lengths.values())) as bar:
            for name, _ in run_jobs(work, list(lengths)):
                bar.note(name)
        with output_dir(Path("runs/chex-points") / params.scale / "pretrain" / str(seed)) as output:
            for name in lengths:
                shutil.copy(stage.work / f"{name}.safetensors", output)


def train_dense(
    name: str, lengths: dict[str, int], params: PointsParams, prepared: Path, seed: int, folder: Path
) -> None:
    """Train one dense network; leaves `<name>.safetensors` in `folder`."""
    path = folder / f"{name}.safetensors"
    if path.exists():
        return
    device, schedule = start_device(), Schedule(lengths[name])
    model, groups = dense_model(params, prepared, seed, device)
    dense = ChannelExplorer(model, groups, ExplorerConfig(t_max=0, period=1, sparsity=0.0), torch.Generator())
    task = task_of(params, prepared, schedule, seed, device)
    with run_log(params, name, "dense", seed) as log:
        fit(model, groups, dense, task, schedule, device, log, Checkpoint(folder / f"{name}.ckpt"))
    save_file(model.state_dict(), path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


if __name__ == "__main__":
    run(main)
