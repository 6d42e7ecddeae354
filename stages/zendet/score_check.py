"""zendet-score-check: the three ways to the entropy score on random structures, and what the proxies make of them.

Reads nothing. Writes `runs/zendet/<scale>/score-check/results.parquet`: tidy rows F2, one per structure (numbered by
seed), method and image size. Structures are steps of random walks within the reference's budget.
"""

from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch

from stages.common.results import results_frame, write_parquet
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, git_revision, run
from stages.common.stage.tracking import run_key
from stages.zendet.cells import limits, reference
from stages.zendet.method.budget import Budget
from stages.zendet.method.cost import count_flops, count_params
from stages.zendet.method.entropy import entropy_score
from stages.zendet.method.proxies import zen_score_of
from stages.zendet.method.spaces import K1KXK1Space
from stages.zendet.method.structure import Structure
from stages.zendet.params import ZendetParams

WALK = 20  # mutations from the reference to a random structure


def main() -> None:
    """Score every structure at every size."""
    params = load_params(ZendetParams, "zendet")
    with Stage("zendet-score-check", params, []):
        rows = []
        numbers = list(range(params.score_check.structures))
        with progress("zendet-score-check", len(numbers)) as bar:
            for number, values in run_jobs(partial(scores, params=params), numbers):
                rows += [row(params, number, *key, value) for key, value in values.items()]
                bar.advance()
        with output_dir(Path("runs/zendet") / params.scale / "score-check") as output:
            write_parquet(results_frame(rows), output / "results.parquet")


def random_structure(number: int, params: ZendetParams) -> Structure:
    """The end of a random walk within the budget; its depth lies between half and all of the reference's."""
    flops, layers = limits(params)
    rng = Random(f"score check {number}")
    space = K1KXK1Space(layers, params.image_size, params.search.rules)
    budget = Budget(params.image_size, flops, layers=layers, min_layers=layers // 2)
    structure = reference(params)
    for _ in range(WALK):
        child = space.mutate(structure, rng)
        structure = child if budget.holds(child) else structure
    return structure


def scores(number: int, params: ZendetParams) -> dict[tuple[str, str], float]:
    """(method, setting) -> score of one structure."""
    check, structure = params.score_check, random_structure(number, params)
    values: dict[tuple[str, str], float] = {}
    for size in check.sizes:
        setting = f"{size} px"
        generator = torch.Generator().manual_seed(number)
        values["analytic", setting] = entropy_score(structure, size).total
        values["closed form", setting] = entropy_score(structure, size, method="closed_form").total
        values["monte carlo", setting] = entropy_score(
            structure,
            size,
            method="monte_carlo",
            batch=check.batch,
            repeats=check.repeats,
            generator=generator,
        ).total
    setting = f"{check.sizes[0]} px"
    values["zen", setting] = zen_score_of(
        structure, check.sizes[0], torch.Generator().manual_seed(number), check.batch
    )
    values["flops", setting] = count_flops(structure, check.sizes[0])
    values["params", setting] = float(count_params(structure))
    return values


def row(params: ZendetParams, number: int, method: str, setting: str, value: float) -> dict[str, Any]:
    """One row of the results; the structure's number stands where other tables have the seed."""
    return {
        "paper": "zendet",
        "table": "F2",
        "method": method,
        "setting": setting,
        "metric": "score",
        "value": value,
        "unit": "1",
        "seed": number,
        "scale": params.scale,
        "data": "none",
        "run_id": run_key("zendet", params.scale, "score-check", number, params.score_check.model_dump()),
        "git_rev": git_revision(),
    }


if __name__ == "__main__":
    run(main)
