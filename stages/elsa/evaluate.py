"""elsa-evaluate: test every network, and count and check what needs no training.

Reads `data/elsa/<scale>/` and `runs/elsa/<scale>/{pretrain,finetune}/`. Writes
`runs/elsa/<scale>/evaluate/results.parquet` (tidy): T4 top-1 of every row (setting "pretrain" or "finetune") and its
parameters and MACs; T1 parameters and MACs of the full-size models; "exact" the equalities of claim 1.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from stages.common.results import results_frame, write_parquet
from stages.common.stage.device import start_device
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, git_revision, run
from stages.common.stage.tracking import RunLog, run_key
from stages.elsa.cells import Step, finetuned, key_of, network, recipe_of
from stages.elsa.data import CLASSES, SIZES, open_data
from stages.elsa.equalities import differences
from stages.elsa.method import swin, volo
from stages.elsa.method.macs import count_macs, count_parameters
from stages.elsa.params import ElsaParams
from stages.elsa.train_row import pretrained_file
from stages.elsa.training import accuracy
from stages.elsa.variants import build_network, rows_of

MODELS = {
    "ELSA-Swin-T": swin.elsa_swin_tiny,
    "ELSA-Swin-S": swin.elsa_swin_small,
    "ELSA-Swin-B": swin.elsa_swin_base,
    "ELSA-VOLO-D1": volo.elsa_volo_d1,
    "ELSA-VOLO-D2": volo.elsa_volo_d2,
    "ELSA-VOLO-D3": volo.elsa_volo_d3,
    "ELSA-VOLO-D4": volo.elsa_volo_d4,
    "ELSA-VOLO-D5": volo.elsa_volo_d5,
}
Cell = tuple[Step, str, int]
Row = dict[str, Any]


def main() -> None:
    """Evaluate all networks that the parameters name."""
    params = load_params(ElsaParams, "elsa")
    prepared, runs = Path("data/elsa") / params.scale, Path("runs/elsa") / params.scale
    rows = [row for mixer in params.mixers for row in rows_of(mixer, params.ablations)]
    cells: list[Cell] = [("pretrain", row, seed) for seed in params.seeds for row in rows]
    cells += [("finetune", row, seed) for seed in params.seeds for row in finetuned(params)]
    inputs = [prepared, *dict.fromkeys(weights_of(runs, *cell).parent for cell in cells)]
    with Stage("elsa-evaluate", params, inputs):
        results = [*sizes(params), *exactness(params), *row_sizes(params, rows)]
        with progress("elsa-evaluate", len(cells)) as bar:
            work = partial(evaluate, params=params, prepared=prepared, runs=runs)
            for _, row in run_jobs(work, cells):
                results.append(row)
                bar.advance()
        with output_dir(runs / "evaluate") as output:
            revision = git_revision()
            frame = results_frame({**row, "git_rev": revision} for row in results)
            write_parquet(frame, output / "results.parquet")


def weights_of(runs: Path, step: Step, name: str, seed: int) -> Path:
    """The file that a training left."""
    if step == "pretrain":
        return pretrained_file(runs, name, seed)
    return runs / "finetune" / str(seed) / f"{name}.safetensors"


def evaluate(cell: Cell, params: ElsaParams, prepared: Path, runs: Path) -> Row:
    """Top-1 of one network; it is also added to its MLflow run."""
    step, name, seed = cell
    device, recipe = start_device(), recipe_of(params, step)
    model = network(params, step, name, seed, device)
    model.load_state_dict(load_file(weights_of(runs, *cell)))
    top1 = accuracy(model, open_data(prepared, recipe, device))
    key = key_of(params, step, name, seed)
    with RunLog("elsa", f"{step} {name} seed {seed}", key, kind="amend") as log:
        log.metrics({"top1": top1}, recipe.steps)
    return _row(params, "T4", name, step, "top1", top1, "%", seed, recipe.data, key)


def row_sizes(params: ElsaParams, rows: list[str]) -> list[Row]:
    """Parameters and multiply-adds of each row in the trunk of this scale."""
    data = params.pretrain.data
    found = []
    for name in rows:
        build = partial(build_network, name, params.trunk, SIZES[data], CLASSES[data], 0.0)
        numbers = {
            "params": (count_parameters(build()), "count"),
            "macs": (sum(count_macs(build, SIZES[data]).values()), "count"),
        }
        found += [
            _row(params, "T4", name, "size", metric, value, unit, 0, data, run_key("elsa", "size", name))
            for metric, (value, unit) in numbers.items()
        ]
    return found


def sizes(params: ElsaParams) -> list[Row]:
    """Claim 2: parameters and multiply-adds of the full-size models at 224 pixels."""
    found = []
    for name, build in MODELS.items():
        with torch.device("meta"):
            parameters = count_parameters(build())
        macs = sum(count_macs(build, 224).values()) / 1e9
        numbers = {"params_exact": (parameters, "count"), "macs": (macs, "G")}
        found += [
            _row(params, "T1", name, "224", metric, value, unit, 0, "none", run_key("elsa", "size", name))
            for metric, (value, unit) in numbers.items()
        ]
    return found


def exactness(params: ElsaParams) -> list[Row]:
    """Claim 1, as far as it needs no golden case: equalities of the operator on random tensors, by seed."""
    return [
        _row(params, "exact", "operator", name, "difference", value, "1", seed, "random tensors",
             run_key("elsa", "exact", seed))
        for seed in params.seeds
        for name, value in differences(seed).items()
    ]  # fmt: skip


def _row(
    params: ElsaParams, table: str, method: str, setting: str, metric: str, value: float, unit: str,
    seed: int, data: str, run_id: str,
) -> Row:  # fmt: skip
    return {
        "paper": "elsa", "table": table, "method": method, "setting": setting, "metric": metric,
        "value": value, "unit": unit, "seed": seed, "scale": params.scale, "data": data, "run_id": run_id,
    }  # fmt: skip


if __name__ == "__main__":
    run(main)
