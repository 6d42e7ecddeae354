"""chex-points-prune: one method and seed, at every FLOPs target.

Reads `data/chex-points/<scale>/` and `runs/chex-points/<scale>/pretrain/<seed>/`. Writes
`runs/chex-points/<scale>/prune/<method>-<seed>/`, per target: `<target>.safetensors`, the physically slim network, and
`<target>.json` with the history of its widths and the largest difference between its outputs and the masked network's.
"""

import json
import shutil
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from stages.chex.method.flops import MacModel
from stages.chex.method.slim import save_slim, slim
from stages.chex.points.cells import dense_model, example, run_log, setting_of
from stages.chex.points.data import EVALUATION_BATCH, PointData
from stages.chex.points.params import MethodName, PointsParams
from stages.chex.points.training import METHODS, task_of
from stages.chex.rows import explorer_of, schedule_of
from stages.chex.sub_training import fit
from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import start_device
from stages.common.stage.files import output_dir, write_atomic
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, cell_arguments, run


def main() -> None:
    """Train and prune one cell of the matrix."""
    cell = cell_arguments("one method and seed", method=tuple(METHODS), seed=int)
    params = load_params(PointsParams, "chex-points")
    prepared, runs = Path("data/chex-points") / params.scale, Path("runs/chex-points") / params.scale
    pretrained, targets = runs / "pretrain" / str(cell.seed), params.prune.flops
    with Stage("chex-points-prune", params, [prepared, pretrained], cell.seed, cell.method) as stage:
        work = partial(
            prune, method=cell.method, seed=cell.seed, params=params, prepared=prepared, pretrained=pretrained,
            folder=stage.work,
        )  # fmt: skip
        steps = schedule_of(METHODS[cell.method], params.recipe.steps, params.prune).steps * len(targets)
        with progress(f"chex-points-prune {cell.method} seed {cell.seed}", steps) as bar:
            for target, _ in run_jobs(work, targets):
                bar.note(f"{target:g}")
        with output_dir(runs / "prune" / f"{cell.method}-{cell.seed}") as output:
            for target in targets:
                for suffix in ("safetensors", "json"):
                    shutil.copy(stage.work / f"{target:g}.{suffix}", output)


def prune(
    target: float, method: MethodName, seed: int, params: PointsParams, prepared: Path, pretrained: Path, folder: Path
) -> None:  # fmt: skip
    """Train one network down to one target; leaves `<target>.safetensors` and `.json` in `folder`."""
    path = folder / f"{target:g}.json"
    if path.exists():
        return
    row, steps, device = METHODS[method], params.recipe.steps, start_device()
    schedule = schedule_of(row, steps, params.prune)
    model, groups = dense_model(params, prepared, seed, device)
    if schedule.finetune:
        model.load_state_dict(load_file(pretrained / "half.safetensors"))
    macs = MacModel(model, groups, example(params).to(device))
    budget = target * macs([group.units for group in groups])
    explorer = explorer_of(row, model, groups, macs, budget, steps, params.prune, seed)
    task = task_of(params, prepared, schedule, seed, device)
    with run_log(params, method, setting_of(target), seed) as log:
        checkpoint = Checkpoint(folder / f"{target:g}.ckpt")
        history = fit(model, groups, explorer, task, schedule, device, log, checkpoint)
    network = slim(model.eval(), groups, explorer.masks)
    x_N3P = PointData(prepared, params.recipe, device).test_x[:EVALUATION_BATCH]
    with torch.no_grad():
        difference = float((model(x_N3P) - network(x_N3P)).abs().max())
    save_slim(network, path.with_suffix(".safetensors"))
    record = {"slim_masked_difference": difference, "history": history}
    write_atomic(path, json.dumps(record))  # last: its presence says that the network is there too


if __name__ == "__main__":
    run(main)
