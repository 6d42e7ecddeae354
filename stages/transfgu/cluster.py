"""transfgu-cluster: concepts, by k-means on the class tokens of windows.

Reads `runs/transfgu/<scale>/features/<seed>/`. Writes `runs/transfgu/<scale>/cluster/<seed>/`, per set of concepts
(backbone and number of things): `<set>.safetensors` with `centroids` (things first, stuff after them; means of raw
tokens) and `<set>.json` with cluster sizes, empty clusters and the windows nearest to each centroid.
"""

import json
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from stages.common.stage.errors import InputError
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, cell_arguments, run
from stages.transfgu.cells import concept_counts, concept_set, concept_sets
from stages.transfgu.features import read_bank
from stages.transfgu.method.kmeans import kmeans
from stages.transfgu.params import BackboneName, TransfguParams

SHOWN = 12  # windows of the gallery, per concept
Concepts = tuple[Tensor, dict[str, object]]


def main() -> None:
    """Cluster the banks of one seed."""
    seed = cell_arguments("concepts of one seed", seed=int).seed
    params = load_params(TransfguParams, "transfgu")
    runs = Path("runs/transfgu") / params.scale
    bank, sets = runs / "features" / str(seed), concept_sets(params)
    with Stage("transfgu-cluster", params, [bank], seed):
        work = partial(concepts, params=params, bank=bank, seed=seed)
        with progress(f"transfgu-cluster seed {seed}", len(sets)) as bar:
            found: dict[str, Concepts] = {}
            for (backbone, factor), result in run_jobs(work, sets):
                found[concept_set(backbone, factor)] = result
                bar.advance()
        with output_dir(runs / "cluster" / str(seed)) as output:
            for name, (centroids_KD, record) in sorted(found.items()):
                save_file({"centroids": centroids_KD}, output / f"{name}.safetensors")
                (output / f"{name}.json").write_text(json.dumps(record))
                if record["empty"]:
                    print(f"transfgu-cluster seed {seed}: {name}: {record['empty']} empty clusters")


def concepts(item: tuple[BackboneName, float], params: TransfguParams, bank: Path, seed: int) -> Concepts:
    """One set of concepts of one seed.

    Raises:
        InputError: a bank that concepts are asked from has no window.
    """
    backbone, factor = item
    tokens_WD, places_W5, kinds_W = read_bank(bank / f"{backbone}.parquet")
    things, stuff = concept_counts(params, factor)
    banks = {"things": things, "stuff": stuff} if params.windows.foreground else {"all": things + stuff}
    return cluster_windows(
        tokens_WD, places_W5, kinds_W.tolist(), banks, params.cluster.n_init, seed, str(bank)
    )


def cluster_windows(
    tokens_WD: Tensor,
    places_W5: Tensor,
    kinds_W: list[str],
    banks: dict[str, int],
    n_init: int,
    seed: int,
    where: str,
) -> Concepts:
    """Centroids `[K, D]` of the banks one after another, and what is known of each cluster."""
    centroids, sizes, nearest, inertia = [], [], [], 0.0
    for kind, count in banks.items():
        if not count:
            continue
        mine = torch.tensor([other == kind for other in kinds_W])
        if not mine.any():
            raise InputError(f"{where}: no window of kind {kind!r}, but {count} concepts are asked from it")
        result = kmeans(tokens_WD[mine], count, n_init=n_init, seed=seed)
        distance_WK = torch.cdist(tokens_WD[mine], result.centroids_KD)
        for k in range(count):
            members = (result.labels_N == k).nonzero()[:, 0]
            order = members[distance_WK[members, k].argsort(stable=True)][:SHOWN]
            nearest.append(places_W5[mine][order].tolist())
        centroids.append(result.centroids_KD)
        sizes += result.sizes_K.tolist()
        inertia += result.inertia
    record = {"sizes": sizes, "empty": sizes.count(0), "inertia": inertia, "nearest": nearest}
    return torch.cat(centroids), record


if __name__ == "__main__":
    run(main)
