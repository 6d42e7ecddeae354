"""uot-released: the paper's own selections, from the class means that the authors released.

Reads the data set `uot` (`stages.uot.released_files`); the quick scale reads nothing and has no such rows.
Writes `runs/uot/<scale>/released/results.parquet`: tidy rows of table T1, no images needed. Alone: `dvc exp
run -S uot=real uot-released`.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from stages.common.results import results_frame, write_parquet
from stages.common.stage.files import output_dir
from stages.common.stage.params import load_params
from stages.common.stage.run import Stage, git_revision, run
from stages.common.stage.tracking import run_key
from stages.uot.data import RELEVANT
from stages.uot.method.selection import SelectionMethod, concept_purity, overlap, rank_classes
from stages.uot.method.transport import class_cost, unbalanced_sinkhorn
from stages.uot.params import UotParams
from stages.uot.released_files import MEANS, SELECTIONS, read_classes, released_file

K = 100  # of both fine-tuning scripts (card, "Step 4")
SMALL_SCALE = 1e-4  # p_m at which exp(-cost) underflows everywhere (card, claim 1)
COMPARED: tuple[SelectionMethod, ...] = (
    "uot",
    "nearest",
    "mean-cost",
    "uot-1step",
    "balanced-ot",
    "round-robin",
)


def main() -> None:
    """Select for all starts and targets."""
    params = load_params(UotParams, "uot")
    with Stage("uot-released", params, []):
        rows = []
        means: dict[str, Tensor] = {}
        official: dict[str, list[int]] = {}
        groups: list[str] = []
        if params.scale != "quick":
            means = load_file(released_file(MEANS))
            official = json.loads(released_file(SELECTIONS).read_text())
            groups = [row["concept"] for row in read_classes()]
        for name, expected in official.items():
            start, _, target = name.partition("/")
            for method, metric, value, unit in measure(means, groups, start, target, expected):
                rows.append(
                    {
                        "paper": "uot",
                        "table": "T1",
                        "method": method,
                        "setting": start,
                        "metric": metric,
                        "value": value,
                        "unit": unit,
                        "seed": 0,
                        "scale": params.scale,
                        "data": target,
                        "run_id": run_key("uot", "released", name),
                        "git_rev": git_revision(),
                    }
                )
        with output_dir(Path("runs/uot") / params.scale / "released") as output:
            write_parquet(results_frame(rows), output / "results.parquet")


def measure(
    means: dict[str, Tensor], groups: list[str], start: str, target: str, expected: list[int]
) -> Iterator[tuple[str, str, float, str]]:
    """(method, metric, value, unit) of one released target.

    What is selected, and how alike the methods are.
    """
    source, own = means[f"{start}/imagenet"], means[f"{start}/{target}"]
    rankings = {method: rank_classes(method, source, own) for method in COMPARED}
    chosen = {method: ranking.order[:K] for method, ranking in rankings.items()}
    yield "uot", "iterations", rankings["uot"].iterations, "iterations"
    tiny = class_cost(source, own, scale=SMALL_SCALE)
    masses = torch.ones(len(source)), torch.ones(len(own))
    solved = unbalanced_sinkhorn(tiny, *masses, eps=1.0, tau=(1.0, 100.0))
    yield "uot", f"finite at p_m {SMALL_SCALE:g}", float(solved.log_plan.isfinite().all()), "1 if so"
    yield "uot", "in the official selection", len(set(chosen["uot"]) & set(expected)), "classes"
    for method in COMPARED:
        yield method, "overlap", 100 * overlap(chosen["uot"], chosen[method]), "%"
        if target in RELEVANT:
            yield method, "purity", 100 * concept_purity(chosen[method], groups, RELEVANT[target]), "%"


if __name__ == "__main__":
    run(main)
