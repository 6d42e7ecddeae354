"""fedformer-evaluate: test every model on all test windows, with and without the last incomplete batch of 32.

Reads `data/fedformer/<scale>/` and `runs/fedformer/<scale>/train/`. Writes
`runs/fedformer/<scale>/evaluate/results.parquet` (tidy).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from stages.common.results import results_frame, write_parquet
from stages.common.stage.device import start_device
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, git_revision, run
from stages.common.stage.tracking import RunLog
from stages.fedformer.cells import Job, build_model, jobs_of, key_of, open_job, setting_of
from stages.fedformer.data import Series, batch, windows_of
from stages.fedformer.errors import COMPAT_BATCH, forecast_metrics, window_errors
from stages.fedformer.method.trunk import FEDformer
from stages.fedformer.params import FedformerParams, ModelName, Recipe

Row = dict[str, Any]
Test = tuple[ModelName, Job, int]  # model, job, seed
Numbers = dict[str, tuple[float, str]]  # metric -> (value, unit)
KS_WINDOWS = 32  # test windows, evenly spaced, whose distributions are compared (card, T5)


def main() -> None:
    """Evaluate all trainings that the parameters name, and the floor that needs none."""
    params = load_params(FedformerParams, "fedformer")
    prepared, runs = Path("data/fedformer") / params.scale, Path("runs/fedformer") / params.scale
    cells = [runs / "train" / f"{model}-{seed}" for model in params.models for seed in params.seeds]
    tests: list[Test] = [
        (model, job, seed)
        for seed in params.seeds
        for model in params.models
        for job in jobs_of(params, model)
    ]
    tests += [("repeat-last", job, params.seeds[0]) for job in jobs_of(params, "repeat-last")]
    with Stage("fedformer-evaluate", params, [prepared, *cells]):
        rows: list[Row] = []
        with progress("fedformer-evaluate", len(tests)) as bar:
            for test, numbers in run_jobs(
                partial(evaluate, params=params, prepared=prepared, runs=runs), tests
            ):
                rows += tidy(test, numbers, params)
                bar.advance()
        with output_dir(runs / "evaluate") as output:
            write_parquet(results_frame(rows), output / "results.parquet")


def evaluate(test: Test, params: FedformerParams, prepared: Path, runs: Path) -> Numbers:
    """The numbers of one model; they are also added to its MLflow run."""
    name, job, seed = test
    recipe, device = params.data[job.data], start_device()
    series = open_job(prepared, job, device)
    model = build_model(name, job, recipe, series.values_TC.shape[1], seed).to(device)
    weights = runs / "train" / f"{name}-{seed}" / f"{job.stem}.safetensors"
    if name != "repeat-last":
        model.load_state_dict(load_file(weights, device=str(device)))
    squared_W, absolute_W = window_errors(model, series, "test", recipe, job.horizon)
    numbers: Numbers = {}
    for suffix, drop in (("", None), ("_drop_last", COMPAT_BATCH)):
        errors = forecast_metrics(squared_W, absolute_W, drop)
        numbers |= {f"{metric}{suffix}": (value, "z-score") for metric, value in errors.items()}
    numbers["windows"] = (float(len(squared_W)), "count")
    numbers["parameters"] = (float(sum(p.numel() for p in model.parameters() if p.requires_grad)), "count")
    if isinstance(model, FEDformer):
        with encoder_zeroed(model):
            without, _ = window_errors(model, series, "test", recipe, job.horizon)
        numbers["mse_encoder_zeroed"] = (float(without.mean()), "z-score")
    numbers["ks_pvalue"] = (ks_pvalue(model, series, recipe, job.horizon), "p")
    if name != "repeat-last":
        with RunLog("fedformer", "", key_of(params, job, name, seed), kind="amend") as log:
            log.metrics({f"test {metric}": value for metric, (value, _) in numbers.items()})
            log.artifact(weights)
    return numbers


@contextmanager
def encoder_zeroed(model: FEDformer) -> Iterator[None]:
    """Within the block the decoder sees zeros where the encoder's output was (card, claim 8)."""

    def zeros(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(output)

    handle = model.encoder_norm.register_forward_hook(zeros)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def ks_pvalue(model: nn.Module, series: Series, recipe: Recipe, horizon: int) -> float:
    """Mean p-value of two-sample Kolmogorov-Smirnov tests, each of one input window and its forecast of one
    variate.

    Over all variates of `KS_WINDOWS` evenly spaced test windows; high where forecasts look like what went in
    (card, T5).
    """
    from scipy.stats import ks_2samp

    starts = windows_of(series.borders, "test", recipe.seq_len, horizon)
    chosen = np.unique(np.linspace(starts[0], starts[-1], KS_WINDOWS).astype(int)).tolist()
    inputs, _ = batch(series, chosen, recipe.seq_len, recipe.label_len, horizon)
    past_BCI = inputs[0].transpose(1, 2).flatten(0, 1).cpu().numpy()
    forecast_BCO = model(*inputs).transpose(1, 2).flatten(0, 1).cpu().numpy()
    values = [
        ks_2samp(past, future, method="asymp").pvalue
        for past, future in zip(past_BCI, forecast_BCO, strict=True)
    ]
    return float(np.mean(values))


def tidy(test: Test, numbers: Numbers, params: FedformerParams) -> list[Row]:
    """Rows of the results from the numbers of one model."""
    model, job, seed = test
    table = "ablation" if job.variation else "multivariate" if job.features == "M" else "univariate"
    common = {
        "paper": "fedformer", "table": table, "method": model,
        "setting": setting_of(job, params.data[job.data]), "seed": seed,
        "scale": params.scale, "data": job.data, "run_id": key_of(params, job, model, seed),
        "git_rev": git_revision(),
    }  # fmt: skip
    return [
        {**common, "metric": metric, "value": value, "unit": unit}
        for metric, (value, unit) in numbers.items()
    ]


if __name__ == "__main__":
    run(main)
