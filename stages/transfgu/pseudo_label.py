"""transfgu-pseudo_label: the concept maps (CAM) of the training images.

Reads `data/transfgu/<scale>/<seed>/`, `runs/transfgu/<scale>/pretrain/<seed>/` and `cluster/<seed>/`. Writes
`runs/transfgu/<scale>/pseudo_label/<seed>/<set>.safetensors` (`stages.transfgu.maps` says in which form).
"""

import shutil
from functools import partial
from pathlib import Path

from safetensors.torch import load_file

from stages.common.stage.device import start_device
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress, tick
from stages.common.stage.run import Stage, cell_arguments, run
from stages.transfgu.cells import concept_set, concept_sets, pretrained_backbone
from stages.transfgu.data import PreparedData
from stages.transfgu.maps import PseudoMaps
from stages.transfgu.method.augment import normalise
from stages.transfgu.method.concept_cam import cam_parts
from stages.transfgu.params import BackboneName, TransfguParams

BATCH = 16


def main() -> None:
    """Make the maps of one seed."""
    seed = cell_arguments("pseudo maps of one seed", seed=int).seed
    params = load_params(TransfguParams, "transfgu")
    prepared, runs = Path("data/transfgu") / params.scale / str(seed), Path("runs/transfgu") / params.scale
    pretrained, clusters, sets = (
        runs / "pretrain" / str(seed),
        runs / "cluster" / str(seed),
        concept_sets(params),
    )
    with Stage("transfgu-pseudo_label", params, [prepared, pretrained, clusters], seed) as stage:
        work = partial(
            make_maps,
            params=params,
            prepared=prepared,
            pretrained=pretrained,
            clusters=clusters,
            seed=seed,
            folder=stage.work,
        )
        total = len(PreparedData(prepared, params).train) * len(sets)
        with progress(f"transfgu-pseudo_label seed {seed}", total) as bar:
            for (backbone, factor), _ in run_jobs(work, sets):
                bar.note(concept_set(backbone, factor))
        with output_dir(runs / "pseudo_label" / str(seed)) as output:
            for backbone, factor in sets:
                shutil.copy(stage.work / f"{concept_set(backbone, factor)}.safetensors", output)


def make_maps(
    item: tuple[BackboneName, float],
    params: TransfguParams,
    prepared: Path,
    pretrained: Path,
    clusters: Path,
    seed: int,
    folder: Path,
) -> None:
    """Write the maps of one set of concepts, `<set>.safetensors` in `folder`."""
    backbone, factor = item
    path = folder / f"{concept_set(backbone, factor)}.safetensors"
    if path.exists():
        return
    device = start_device()
    model = pretrained_backbone(backbone, params, pretrained, seed, device)
    centroids_KD = load_file(clusters / path.name)["centroids"]
    images, size = PreparedData(prepared, params).train, (params.data.height, params.data.width)
    maps = PseudoMaps(len(centroids_KD), (size[0] // model.patch, size[1] // model.patch))
    for first in range(0, len(images), BATCH):
        ids = list(range(first, min(first + BATCH, len(images))))
        x_BCHW = normalise(images.read(ids, size).to(device))
        maps.add(cam_parts(model, x_BCHW, centroids_KD, params.cam.batch_size), params.cam.keep)
        tick(len(ids))
    maps.save(path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


if __name__ == "__main__":
    run(main)
