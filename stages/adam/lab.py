"""What the experiments share: one loop of descent with exact measurements, tidy rows, and how a stage runs its jobs.

Shapes: R settings (horizons, gammas, betas ...), S seeds, d coordinates; all runs of a job advance together as [R, S, d].
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from stages.adam.method.noise import Noise
from stages.adam.method.probe import GradientProbe, log_spaced
from stages.adam.method.problems.quadratic_welsch import QuadraticWelsch
from stages.adam.method.recursion import Number, Recursion
from stages.adam.params import AdamParams
from stages.common.results import read_parquet, results_frame, write_parquet
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, git_revision
from stages.common.stage.tracking import RunLog, run_key

CURVE_COLUMNS = ["experiment", "method", "setting", "metric", "step", "mean", "standard_error"]


def column(values: Iterable[float]) -> Tensor:
    """One number per setting, [R, 1, 1], to broadcast over [R, S, d]."""
    return torch.tensor(list(values), dtype=torch.float64)[:, None, None]


def marks_of(horizons: Sequence[int]) -> set[int]:
    """Where sums are needed: the horizons, their halves, and log-spaced times for curves."""
    return {*horizons, *(T // 2 for T in horizons), *log_spaced(max(horizons)), 1}


def descend(
    problem: QuadraticWelsch, recursion: Recursion, noise: Noise, eta: Number, beta: Number, settings: int,
    marks: set[int],
) -> GradientProbe:  # fmt: skip
    """Run the recursion on noisy gradients of `problem` to the last mark.

    Measures, with exact gradients: `grad_sq` = ‖∇F(x_t)‖², `error_sq` = ‖v_{t+1} - ∇F(x_t)‖², and the ranges of the scale
    `s`, the stochastic gradient `g` and the first moment's norm `v_norm`.
    """
    x = problem.x0.expand(settings, len(noise.seeds), -1)
    probe = GradientProbe(marks)
    for t in range(max(marks)):
        grad = problem.grad(x)
        g = grad + noise.at(t)
        x = recursion.step(x, g, eta, beta)
        probe.see(grad_sq=grad.square().sum(-1), error_sq=(recursion.v - grad).square().sum(-1))
        probe.see_range(s=recursion.s.expand_as(x), g=g, v_norm=recursion.v.norm(dim=-1, keepdim=True))
    return probe


class Sheet:
    """Results of one job: a number per seed for the tables, means over seeds for the curves."""

    def __init__(self, params: AdamParams, experiment: str, section: Any, seeds: Sequence[int]) -> None:
        self.params, self.experiment, self.section, self.seeds = params, experiment, section, seeds
        self.rows: list[dict[str, Any]] = []
        self.curves: list[dict[str, Any]] = []
        self._git = git_revision()

    def run_id(self, method: str) -> str:
        """Names the runs of a method, all its settings and seeds, in the results and in MLflow."""
        return run_key(
            "adam", self.params.scale, self.experiment, method, self.seeds, self.section.model_dump()
        )

    def add(
        self, table: str, method: str, setting: str, metric: str, values_S: Tensor, unit: str, data: str
    ) -> None:
        """A metric's value for each seed."""
        for seed, value in zip(self.seeds, values_S.tolist(), strict=True):
            self.rows.append(
                {
                    "paper": "adam", "table": table, "method": method, "setting": setting, "metric": metric,
                    "value": value, "unit": unit, "seed": seed, "scale": self.params.scale, "data": data,
                    "run_id": self.run_id(method), "git_rev": self._git,
                }
            )  # fmt: skip

    def curve(self, method: str, setting: str, metric: str, values: dict[int, Tensor]) -> None:
        """A metric over steps, from its values [S] at some of them."""
        for step, value_S in values.items():
            error = float(value_S.std(unbiased=True)) / len(value_S) ** 0.5 if len(value_S) > 1 else 0.0
            numbers = (self.experiment, method, setting, metric, step, float(value_S.mean()), error)
            self.curves.append(dict(zip(CURVE_COLUMNS, numbers, strict=True)))

    def save(self, job: str, folder: Path) -> None:
        """Write both tables of a job into `folder`."""
        write_parquet(pd.DataFrame(self.curves, columns=CURVE_COLUMNS), folder / f"{job}.curves.parquet")
        write_parquet(
            results_frame(self.rows), folder / f"{job}.parquet"
        )  # last: it says that the job is done

    def log(self) -> None:
        """One MLflow run per method; a method's seeds advance together, so they are one run, logged as their mean."""
        frame = pd.DataFrame(self.rows)
        for method, rows in frame.groupby("method", sort=False):
            name = str(method)
            described = {"experiment": self.experiment, "method": name, "seeds": self.seeds}
            with RunLog(
                "adam",
                f"{self.experiment} {name}",
                self.run_id(name),
                params={**described, **self.section.model_dump()},
                tags={"scale": self.params.scale, "experiment": self.experiment, "method": name},
            ) as log:
                means = rows.groupby(["metric", "setting"])["value"].mean()
                log.metrics(
                    {_plain(f"{metric} {setting}"): float(v) for (metric, setting), v in means.items()}
                )
                for entry in self.curves:
                    if entry["method"] == name:
                        metric = _plain(f"{entry['metric']} over steps {entry['setting']}")
                        log.metrics({metric: entry["mean"]}, entry["step"])


def _plain(name: str) -> str:
    """A metric's name with the characters that MLflow takes."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-. /") else "_" for c in name)


def run_experiment(
    name: str,
    params: AdamParams,
    jobs: Sequence[str],
    work: Callable[[str], Sheet],
    inputs: Sequence[Path] = (),
) -> None:
    """Run an experiment's jobs side by side and write `runs/adam/<scale>/<name>/`: `results.parquet` and `curves.parquet`.

    A job that a killed run has finished is not run again.
    """
    with Stage(f"adam-{name}", params, inputs) as stage:
        with progress(f"adam-{name}", len(jobs)) as bar:
            for job, _ in run_jobs(partial(_run_job, work=work, folder=stage.work), jobs):
                bar.advance(note=job)
        write_experiment(name, params, jobs, stage.work)


def write_experiment(name: str, params: AdamParams, jobs: Sequence[str], folder: Path) -> None:
    """Join what the jobs left in `folder` into the experiment's output."""
    with output_dir(Path("runs/adam") / params.scale / name) as output:
        rows = [row for job in jobs for row in read_parquet(folder / f"{job}.parquet").to_dict("records")]
        write_parquet(results_frame(rows), output / "results.parquet")
        points = [
            row for job in jobs for row in read_parquet(folder / f"{job}.curves.parquet").to_dict("records")
        ]
        write_parquet(pd.DataFrame(points, columns=CURVE_COLUMNS), output / "curves.parquet")


def _run_job(job: str, work: Callable[[str], Sheet], folder: Path) -> None:
    if (folder / f"{job}.parquet").exists():
        return
    sheet = work(job)
    sheet.log()
    sheet.save(job, folder)
