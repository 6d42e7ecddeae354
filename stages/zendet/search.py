"""zendet-search: one strategy and seed at the reference's budget; no data, no training.

The strategies `resnet` and `MAE-DET-*` stand for given structures, which are only counted and scored.

Reads nothing. Writes `runs/zendet/<scale>/search/<strategy>/<seed>/`, per search: `<name>.txt`, the structure in
the authors' form, and `<name>.json` with its score, its costs and the search's history. Strategy `entropy` has the
ablation's searches too.
"""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any, get_args

from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main
from stages.common.stage.files import output_dir, write_atomic
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, cell_arguments, run
from stages.common.stage.tracking import RunLog, run_key
from stages.zendet.cells import (
    MIN_FLOPS,
    SearchJob,
    fixed_structure,
    limits,
    reference,
    search_jobs,
    small_start,
)
from stages.zendet.method.budget import Budget
from stages.zendet.method.cost import count_flops, count_layers, count_params
from stages.zendet.method.entropy import EntropyScorer
from stages.zendet.method.evolution import EvolutionarySearch
from stages.zendet.method.spaces import K1KXK1Space
from stages.zendet.method.structure import dump_structure
from stages.zendet.objectives import objective_of
from stages.zendet.params import Strategy, ZendetParams


def main() -> None:
    """Search one cell of the matrix."""
    cell = cell_arguments("one strategy and seed", strategy=get_args(Strategy), seed=int)
    params = load_params(ZendetParams, "zendet")
    with Stage("zendet-search", params, [], cell.seed, cell.strategy) as stage:
        jobs = search_jobs(cell.strategy)
        work = partial(search, strategy=cell.strategy, seed=cell.seed, params=params, folder=stage.work)
        with progress(f"zendet-search {cell.strategy} seed {cell.seed}", len(jobs)) as bar:
            for job, _ in run_jobs(work, jobs):
                bar.advance(note=job.name)
        if not is_main():
            return
        with output_dir(
            Path("runs/zendet") / params.scale / "search" / cell.strategy / str(cell.seed)
        ) as out:
            for job in jobs:
                for suffix in ("txt", "json"):
                    shutil.copy(stage.work / f"{job.name}.{suffix}", out)


def build_search(job: SearchJob, strategy: Strategy, seed: int, params: ZendetParams) -> EvolutionarySearch:
    """The search of a job: everyone has the reference's FLOPs and layers, the control must also spend them."""
    flops, layers = limits(params)
    control = strategy == "min-entropy"
    budget = Budget(
        params.image_size,
        flops,
        layers=layers,
        min_flops=MIN_FLOPS * flops if control else 0.0,
        min_layers=layers if control else 0,
    )
    method = "closed_form" if job.closed_form else "analytic"
    objective = (
        EntropyScorer(params.image_size, job.alphas, method)  # type: ignore[arg-type]
        if strategy == "entropy"
        else objective_of(strategy, params.image_size, seed)
    )
    return EvolutionarySearch(
        K1KXK1Space(layers, params.image_size, params.search.rules),
        budget,
        objective,
        reference(params) if control else small_start(params),
        params.search.zen_evaluations if strategy == "zen" else params.search.evaluations,
        params.search.population,
        seed,
        params.search.islands,
        job.mutation,
        select=strategy != "random",
    )


def search(job: SearchJob, strategy: Strategy, seed: int, params: ZendetParams, folder: Path) -> None:
    """Run one search; leaves `<name>.txt` and `<name>.json` in `folder`."""
    path = folder / f"{job.name}.json"
    if path.exists():
        return
    checkpoint = Checkpoint(folder / f"{job.name}.ckpt")
    with RunLog(
        "zendet",
        f"search {strategy} {job.name} seed {seed}",
        run_key("zendet", params.scale, "search", strategy, job.name, seed, params.search.model_dump()),
        params={"method": strategy, "search": job.name, "seed": seed, **params.search.model_dump()},
        tags={"scale": params.scale, "method": strategy},
    ) as log:
        best, history = fixed_structure(strategy, params), []
        if best is None:
            result = build_search(job, strategy, seed, params).run(
                state=checkpoint.load(), on_round=checkpoint.save
            )
            best, history = result.best, result.history
        for row in history:
            log.metrics({"best score": row["best"]}, int(row["evaluations"]))
    record: dict[str, Any] = {
        "entropy": EntropyScorer(params.image_size)(best),
        "flops": count_flops(best, params.image_size),
        "params": count_params(best),
        "layers": count_layers(best),
        "history": history,
    }
    write_atomic(path.with_suffix(".txt"), dump_structure(best))
    # last: its presence says that the structure is there too
    write_atomic(path, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
