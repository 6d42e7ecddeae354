"""hico-theory: the simulation of gradual sampling (card, section 6 and claim 6).

Reads nothing. Writes `runs/hico/<scale>/theory/results.parquet`: table H, the loss after the last step of every
schedule and seed and, for the figure, at points before it.
"""

from functools import partial
from pathlib import Path

import torch

from stages.common.results import results_frame, write_parquet
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, git_revision, run
from stages.common.stage.tracking import run_key
from stages.hico.gradual_theory import excess_losses
from stages.hico.params import HicoParams

POINTS = 20  # of the curve


def main() -> None:
    """Simulate every seed."""
    params = load_params(HicoParams, "hico")
    steps, seeds = params.theory.steps, list(range(params.theory.seeds))
    with Stage("hico-theory", params, []):
        rows = []
        with progress("hico-theory", len(seeds)) as bar:
            for seed, losses in run_jobs(partial(simulate, steps=steps), seeds):
                for schedule, values in losses.items():
                    rows += [
                        {
                            "paper": "hico",
                            "table": "H",
                            "method": schedule,
                            "setting": f"step {step}",
                            "metric": "final loss" if step == steps else "loss",
                            "value": value,
                            "unit": "1",
                            "seed": seed,
                            "scale": params.scale,
                            "data": "strongly convex toy",
                            "run_id": run_key("hico", params.scale, "theory", steps, seed),
                            "git_rev": git_revision(),
                        }
                        for step, value in values.items()
                    ]
                bar.advance()
        with output_dir(Path("runs/hico") / params.scale / "theory") as output:
            write_parquet(results_frame(rows), output / "results.parquet")


def simulate(seed: int, steps: int) -> dict[str, dict[int, float]]:
    """Losses by step, at `POINTS` steps spread evenly on a logarithm and the last one."""
    chosen = sorted(
        {int(step) for step in torch.logspace(0, torch.log10(torch.tensor(steps)).item(), POINTS)} | {steps}
    )
    return {
        name: {step: float(loss[step - 1]) for step in chosen}
        for name, loss in excess_losses(steps, seed).items()
    }


if __name__ == "__main__":
    run(main)
