"""chex-prune: one method and seed, on every data set and at every FLOPs target.

Reads `data/chex/<scale>/` and `runs/chex/<scale>/pretrain/<seed>/`. Writes
`runs/chex/<scale>/prune/<method>-<seed>/`, per data set and target: `<data>-<target>.safetensors`, the
physically slim network, and `<data>-<target>.json` with the history of its widths and the largest difference
between its outputs and the masked network's.
"""

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file

from stages.chex.cells import dense_model, example, run_log, setting_of
from stages.chex.data import open_data
from stages.chex.method.column_subset import Criterion
from stages.chex.method.explorer import ChannelExplorer, ExplorerConfig
from stages.chex.method.flops import MacModel
from stages.chex.method.slim import save_slim, slim
from stages.chex.params import ChexParams, DataName, MethodName, Prune, Recipe
from stages.chex.training import Schedule, fit
from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, start_device
from stages.common.stage.files import output_dir, write_atomic
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, cell_arguments, run

Job = tuple[DataName, float]


@dataclass(frozen=True)
class Method:
    """A row of the table: where it starts, and when and how it chooses channels.

    `choose`: "before training" a narrow network is trained from scratch; "after training" a network trained for half of
    the steps is pruned once and fine-tuned for the other half; "once" and "while training" start dense from scratch and
    prune at the first update, or at every update.
    """

    choose: Literal["before training", "after training", "once", "while training"]
    criterion: Criterion = "css"
    allocation: Literal["global", "uniform"] = "global"
    regrow: Literal["residual", "random", "none"] = "residual"


METHODS: dict[MethodName, Method] = {
    "uniform": Method("before training", "l1", "uniform"),
    "random": Method("after training", "random", "uniform"),
    "l1": Method("after training", "l1", "uniform"),
    "bn": Method("after training", "bn"),
    "chex": Method("while training"),
    "chex-prune-once": Method("once"),
    "chex-no-regrow": Method("while training", regrow="none"),
    "chex-random-regrow": Method("while training", regrow="random"),
    "chex-no-realloc": Method("while training", allocation="uniform"),
}


def main() -> None:
    """Train and prune one cell of the matrix."""
    cell = cell_arguments("one method and seed", method=tuple(METHODS), seed=int)
    params = load_params(ChexParams, "chex")
    prepared = Path("data/chex") / params.scale
    runs = Path("runs/chex") / params.scale
    pretrained = runs / "pretrain" / str(cell.seed)
    with Stage("chex-prune", params, [prepared, pretrained], cell.seed, cell.method) as stage:
        jobs: list[Job] = [(name, target) for name in params.data for target in params.prune.flops]
        work = partial(
            prune, method=cell.method, seed=cell.seed, params=params, prepared=prepared, pretrained=pretrained,
            folder=stage.work,
        )  # fmt: skip
        how = METHODS[cell.method]
        steps = sum(schedule_of(how, params.data[name], params.prune).steps for name, _ in jobs)
        with progress(f"chex-prune {cell.method} seed {cell.seed}", steps) as bar:
            for (name, target), _ in run_jobs(work, jobs):
                bar.note(f"{name} {target:g}")
        if not is_main():
            return
        with output_dir(runs / "prune" / f"{cell.method}-{cell.seed}") as output:
            for name, target in jobs:
                for suffix in ("safetensors", "json"):
                    shutil.copy(stage.work / f"{name}-{target:g}.{suffix}", output)


def prune(
    job: Job,
    method: MethodName,
    seed: int,
    params: ChexParams,
    prepared: Path,
    pretrained: Path,
    folder: Path,
) -> None:
    """Train one network down to one target; leaves `<data>-<target>.safetensors` and `.json` in `folder`."""
    name, target = job
    path = folder / f"{name}-{target:g}.json"
    if path.exists():
        return
    how, recipe, device = METHODS[method], params.data[name], start_device()
    model, groups = dense_model(name, recipe, seed, device)
    if how.choose == "after training":
        model.load_state_dict(load_file(pretrained / f"{name}-half.safetensors"))
    macs = MacModel(model, groups, example(name).to(device))
    dense_macs = macs([group.units for group in groups])
    schedule = schedule_of(how, recipe, params.prune)
    config = ExplorerConfig(
        t_max=recipe.steps * params.prune.explore,
        period=round(recipe.steps * params.prune.period),
        macs_budget=target * dense_macs,
        delta0=0.0 if how.choose == "before training" else None,
        allocation=how.allocation,
        criterion=how.criterion,
        regrow=how.regrow,
        residual_power=params.prune.residual_power,
    )
    explorer = ChannelExplorer(model, groups, config, torch.Generator().manual_seed(seed), macs)
    explorer.initialise()
    with run_log(params, name, method, setting_of(target), seed) as log:
        data = open_data(prepared, name, recipe, device)
        checkpoint = Checkpoint(folder / f"{name}-{target:g}.ckpt")
        history = fit(model, groups, explorer, data, recipe, schedule, seed, log, checkpoint)
    if not is_main():
        return
    network = slim(model.eval(), groups, explorer.masks)
    x_BCHW, _ = next(iter(data.test()))
    with torch.no_grad():
        difference = float((model(x_BCHW) - network(x_BCHW)).abs().max())
    save_slim(network, path.with_suffix(".safetensors"))
    record = {"slim_masked_difference": difference, "history": history}
    write_atomic(path, json.dumps(record))  # last: its presence says that the network is there too


def schedule_of(how: Method, recipe: Recipe, prune: Prune) -> Schedule:
    """When a method trains and chooses channels, in steps."""
    period = round(recipe.steps * prune.period)
    match how.choose:
        case "before training":
            return Schedule(recipe.steps, recipe.lr)
        case "after training":
            return Schedule(recipe.steps - recipe.steps // 2, recipe.finetune_lr, final_update=0)
        case "once":
            return Schedule(recipe.steps, recipe.lr, final_update=period)
        case "while training":
            updates = range(period, int(recipe.steps * prune.explore) + 1, period)
            return Schedule(recipe.steps, recipe.lr, updates, final_update=updates[-1] + period)


if __name__ == "__main__":
    run(main)
