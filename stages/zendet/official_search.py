"""zendet-official: the authors' own search setting, and the published backbones counted and scored.

18.8 GFLOPs at 480 px, 91 layers, from their initial structure, closed form, against random search. Reads nothing
(the authors' latency table, if `latency_table` names it). Writes `runs/zendet/<scale>/official/results.parquet`:
tidy rows T4 (searches), T5 (published backbones: parameters, FLOPs, scores, predicted latency), F1 (best score by
evaluations, in the setting).
"""

from functools import partial
from pathlib import Path
from typing import Any

from stages.common.results import read_parquet, results_frame, write_parquet
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, git_revision, run
from stages.common.stage.tracking import run_key
from stages.zendet.latency_table import read_latency_table
from stages.zendet.method.budget import Budget
from stages.zendet.method.cost import count_flops, count_layers, count_params
from stages.zendet.method.entropy import EntropyScorer
from stages.zendet.method.evolution import EvolutionarySearch
from stages.zendet.method.published import INITIAL_DETECTION, PUBLISHED
from stages.zendet.method.spaces import K1KXK1Space
from stages.zendet.params import ZendetParams

FLOPS, LAYERS, SIZE, POPULATION = 18.8e9, 91, 480, 256
LATENCY_BATCH = 32
Row = dict[str, Any]
Job = tuple[str, int]  # method, seed


def main() -> None:
    """Search with every seed, count and score the published backbones."""
    params = load_params(ZendetParams, "zendet")
    with Stage("zendet-official", params, []) as stage:
        jobs = [(method, seed) for method in ("entropy", "random") for seed in params.search.official_seeds]
        work = partial(search, params=params, folder=stage.work)
        with progress("zendet-official", len(jobs)) as bar:
            for (method, seed), _ in run_jobs(work, jobs):
                bar.advance(note=f"{method} {seed}")
        rows = published_backbones(params)
        for method, seed in jobs:
            rows += read_parquet(stage.work / f"{method}-{seed}.parquet").to_dict("records")
        with output_dir(Path("runs/zendet") / params.scale / "official") as output:
            write_parquet(results_frame(rows), output / "results.parquet")


def official_search(method: str, seed: int, evaluations: int, islands: int = 1) -> EvolutionarySearch:
    """The released algorithm's setting; `method` is "entropy" or "random" (a walk without selection)."""
    return EvolutionarySearch(
        K1KXK1Space(LAYERS, SIZE),
        Budget(SIZE, FLOPS, layers=LAYERS),
        EntropyScorer(SIZE, method="closed_form"),
        INITIAL_DETECTION,
        evaluations,
        POPULATION,
        seed,
        islands,
        select=method == "entropy",
    )


def search(job: Job, params: ZendetParams, folder: Path) -> None:
    """One search; leaves its rows in `folder`."""
    method, seed = job
    path = folder / f"{method}-{seed}.parquet"
    if path.exists():
        return
    result = official_search(method, seed, params.search.official_evaluations).run()
    best, last = result.best, result.history[-1]
    numbers = {
        "score": result.ranked[0][0],
        "flops": count_flops(best, SIZE) / 1e9,
        "params": count_params(best) / 1e6,
        "layers": count_layers(best),
        "evaluations": last["evaluations"],
        "distinct": last["distinct"],
    }
    rows = [
        tidy(params, "T4", method, "official budget", metric, value, seed)
        for metric, value in numbers.items()
    ]
    for point in result.history:
        setting = f"after {point['evaluations']:.0f}"
        rows.append(tidy(params, "F1", method, setting, "best score", point["best"], seed))
    write_parquet(results_frame(rows), path)


def published_backbones(params: ZendetParams) -> list[Row]:
    """Accounting (claim 1), scores (claim 4) and predicted latency (claim 7) of the published structures."""
    table = read_latency_table(Path(params.search.latency_table)) if params.search.latency_table else None
    rows = []
    for name, structure in PUBLISHED.items():
        convention = "conv_bn1" if name.startswith("ResNet") else "conv_bn2"
        numbers = {
            "params": count_params(structure),
            "published flops": count_flops(structure, (800, 1280), convention) / 1e9,  # type: ignore[arg-type]
            "layers": count_layers(structure),
            "closed-form score": EntropyScorer(SIZE, method="closed_form")(structure),
            "analytic score": EntropyScorer(SIZE)(structure),
        }
        if table is not None:
            numbers["predicted ms"] = table.predict_network(structure, SIZE, LATENCY_BATCH) / LATENCY_BATCH
        rows += [tidy(params, "T5", name, "published", metric, value, 0) for metric, value in numbers.items()]
    return rows


def tidy(
    params: ZendetParams, table: str, method: str, setting: str, metric: str, value: float, seed: int
) -> Row:
    """One row of the results."""
    units = {
        "published flops": "G",
        "flops": "G",
        "params": "count" if table == "T5" else "M",
        "predicted ms": "ms",
    }
    return {
        "paper": "zendet",
        "table": table,
        "method": method,
        "setting": setting,
        "metric": metric,
        "value": value,
        "unit": units.get(metric, "1"),
        "seed": seed,
        "scale": params.scale,
        "data": "none",
        "run_id": run_key("zendet", params.scale, table, method, seed, params.search.official_evaluations),
        "git_rev": git_revision(),
    }


if __name__ == "__main__":
    run(main)
