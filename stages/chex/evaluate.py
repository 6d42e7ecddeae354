"""chex-evaluate: test every network that was trained, and count what is left of it.

Reads `data/chex/<scale>/`, `runs/chex/<scale>/pretrain/` and `prune/`. Writes `runs/chex/<scale>/evaluate/`:
`results.parquet` (tidy) and `widths.parquet` (active channels per group at every choice of channels).
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stages.chex.cells import dense_model, example, key_of, setting_of
from stages.chex.data import accuracy, open_data
from stages.chex.method.column_subset import Criterion, reconstruction_residual, select_channels, svd_bound
from stages.chex.method.flops import count_macs, count_params
from stages.chex.method.slim import load_slim
from stages.chex.params import ChexParams, DataName
from stages.common.results import results_frame, write_parquet
from stages.common.stage.device import start_device
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, git_revision, run
from stages.common.stage.tracking import RunLog

Job = tuple[DataName, str, float | None, int]  # data set, method, FLOPs target (None: dense), seed
Row = dict[str, Any]
KEEP_FRACTIONS = (0.25, 0.5)  # of a layer's channels, in the comparison of selection criteria (card, claim 4)
CRITERIA: tuple[Criterion, ...] = ("random", "l1", "css", "css_greedy")


def main() -> None:
    """Evaluate all cells that the parameters name."""
    params = load_params(ChexParams, "chex")
    prepared, runs = Path("data/chex") / params.scale, Path("runs/chex") / params.scale
    cells = [runs / "prune" / f"{method}-{seed}" for method in params.methods for seed in params.seeds]
    inputs = [prepared, *(runs / "pretrain" / str(seed) for seed in params.seeds), *cells]
    jobs: list[Job] = [
        (data, method, target, seed)
        for data in params.data
        for seed in params.seeds
        for method, target in [("dense", None), *((m, t) for m in params.methods for t in params.prune.flops)]
    ]
    with Stage("chex-evaluate", params, inputs):
        rows: list[Row] = []
        widths: list[Row] = []
        with progress("chex-evaluate", len(jobs)) as bar:
            for job, numbers in run_jobs(
                partial(evaluate, params=params, prepared=prepared, runs=runs), jobs
            ):
                rows += tidy(job, numbers, params)
                widths += history(job, runs)
                bar.advance()
        with output_dir(runs / "evaluate") as output:
            write_parquet(results_frame(rows), output / "results.parquet")
            order = ["data", "method", "target", "seed", "step"]
            write_parquet(
                pd.DataFrame(widths).sort_values(order, kind="stable", ignore_index=True),
                output / "widths.parquet",
            )


def network_path(job: Job, runs: Path) -> Path:
    """Where the trained network of a job lies."""
    data, method, target, seed = job
    if target is None:
        return runs / "pretrain" / str(seed) / f"{data}-dense.safetensors"
    return runs / "prune" / f"{method}-{seed}" / f"{data}-{target:g}.safetensors"


def evaluate(
    job: Job, params: ChexParams, prepared: Path, runs: Path
) -> dict[tuple[str, str], tuple[float, str]]:
    """The numbers of one network, as (table, metric) -> (value, unit); they are also added to its MLflow run."""
    data, method, target, seed = job
    recipe, device, path = params.data[data], start_device(), network_path(job, runs)
    dense, groups = dense_model(data, recipe, seed, device)
    numbers: dict[tuple[str, str], tuple[float, str]] = {}
    if target is None:
        dense.load_state_dict(load_file(path))
        network: nn.Module = dense
        for metric, value in selection_residuals(dense, [group.name for group in groups], seed):
            numbers["T6", metric] = (value, "relative residual")
    else:
        network = load_slim(path).to(device)
        record = json.loads(path.with_suffix(".json").read_text())
        numbers["T1", "slim_masked_difference"] = (record["slim_masked_difference"], "max abs logit")
    network.eval()
    dense_macs, macs = (
        count_macs(dense, example(data).to(device)),
        count_macs(network, example(data).to(device)),
    )
    numbers |= {
        ("T1", "top1"): (accuracy(network, open_data(prepared, data, recipe, device)), "%"),
        ("T1", "macs"): (macs, "MACs"),
        ("T1", "macs_fraction"): (macs / dense_macs, "of dense"),
        ("T1", "params"): (count_params(network), "count"),
        ("T1", "torch_macs"): (torch_macs(network, example(data).to(device)), "MACs"),
    }
    key = key_of(params, data, method, setting_of(target), seed)
    with RunLog("chex", "", key, kind="amend") as log:
        log.metrics({metric: value for (table, metric), (value, _) in numbers.items() if table == "T1"})
        log.artifact(path)
    return numbers


@torch.no_grad()
def torch_macs(network: nn.Module, x_1CHW: torch.Tensor) -> float:
    """Multiply-accumulates by torch's own counter, which knows nothing of ours (it leaves biases out)."""
    with FlopCounterMode(display=False) as counter:
        network(x_1CHW)
    return counter.get_total_flops() / 2


def selection_residuals(network: nn.Module, layers: list[str], seed: int) -> Iterator[tuple[str, float]]:
    """Relative weight-reconstruction residual of each criterion, mean over the tall layers (card, claim 4)."""
    generator = torch.Generator().manual_seed(seed)
    weights = [dict(network.named_parameters())[f"{name}.weight"].detach() for name in layers]
    tall = [weight for weight in weights if weight[0].numel() >= len(weight)]
    for fraction in KEEP_FRACTIONS:
        kept = [max(1, int(len(weight) * fraction)) for weight in tall]
        for criterion in CRITERIA:
            values = [
                reconstruction_residual(w, select_channels(w, n, criterion, generator=generator))
                / float(w.square().sum())
                for w, n in zip(tall, kept, strict=True)
            ]
            yield f"{criterion}@{fraction:g}", sum(values) / len(values)
        bounds = [svd_bound(w, n) / float(w.square().sum()) for w, n in zip(tall, kept, strict=True)]
        yield f"bound@{fraction:g}", sum(bounds) / len(bounds)


def tidy(job: Job, numbers: dict[tuple[str, str], tuple[float, str]], params: ChexParams) -> list[Row]:
    """Rows of the results from the numbers of one network."""
    data, method, target, seed = job
    setting = setting_of(target)
    common = {
        "paper": "chex", "method": method, "setting": setting, "seed": seed, "scale": params.scale, "data": data,
        "run_id": key_of(params, data, method, setting, seed), "git_rev": git_revision(),
    }  # fmt: skip
    return [
        {**common, "table": table, "metric": metric, "value": value, "unit": unit}
        for (table, metric), (value, unit) in numbers.items()
    ]


def history(job: Job, runs: Path) -> list[Row]:
    """Active channels per group at every choice of channels of one network."""
    data, method, target, seed = job
    if target is None:
        return []
    record = json.loads(network_path(job, runs).with_suffix(".json").read_text())
    return [
        {
            "data": data,
            "method": method,
            "target": target,
            "seed": seed,
            "step": entry["step"],
            **entry["active"],
        }
        for entry in record["history"]
    ]


if __name__ == "__main__":
    run(main)
