"""uot-select: rank the source classes for every target, by unbalanced transport and by every baseline.

Reads `data/uot/<scale>/<seed>/` and `runs/uot/<scale>/pretrain/<seed>/`. Writes
`runs/uot/<scale>/select/<seed>/<start>-<target>.json`: fraction of the target's training images -> method ->
`order` (class ids, best first), `score` (likewise), `iterations`. The quick scale adds `<start>-mixed.json`
for its heterogeneous target (claim 8), which nobody fine-tunes on.
"""

import json
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path

from safetensors.torch import load_file, save
from torch import nn

from stages.common.stage.device import start_device
from stages.common.stage.files import output_dir, sha256, write_atomic
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, run
from stages.uot.cells import pretrained_backbone
from stages.uot.data import Images, PreparedData
from stages.uot.method.backbones import features, projection_from
from stages.uot.method.class_means import ClassMeans, class_means
from stages.uot.method.selection import SELECTION_METHODS, TransportSettings, rank_classes
from stages.uot.params import PretrainName, UotParams

Job = tuple[PretrainName, int]  # start, seed


def main() -> None:
    """Rank for every start and seed."""
    params = load_params(UotParams, "uot")
    prepared, runs = Path("data/uot") / params.scale, Path("runs/uot") / params.scale
    jobs: list[Job] = [(name, seed) for seed in params.seeds for name in params.pretraining]
    inputs = [prepared, *(runs / "pretrain" / str(seed) for seed in params.seeds)]
    with Stage("uot-select", params, inputs) as stage:
        work = partial(
            select, params=params, prepared=prepared, pretrained=runs / "pretrain", folder=stage.work
        )
        with progress("uot-select", len(jobs)) as bar:
            for (name, seed), _ in run_jobs(work, jobs):
                bar.advance(note=f"{name} seed {seed}")
        with output_dir(runs / "select") as output:
            for seed in params.seeds:
                with output_dir(output / str(seed)) as folder:
                    for path in sorted(stage.work.glob(f"{seed}-*.json")):
                        shutil.copy(path, folder / path.name.removeprefix(f"{seed}-"))


def select(job: Job, params: UotParams, prepared: Path, pretrained: Path, folder: Path) -> None:
    """Rank for all targets of one start and seed; leaves `<seed>-<start>-<target>.json` in `folder`."""
    name, seed = job
    device = start_device()
    data = PreparedData(prepared / str(seed), device)
    weights = pretrained / str(seed) / f"{name}.safetensors"
    backbone = pretrained_backbone(weights, params, name).to(device).eval()
    projection = projection_from(load_file(weights))
    if projection is not None:
        projection = projection.to(device).eval()
    source = source_means(data, backbone, projection, kept_means(data, weights, seed, folder))
    settings = TransportSettings(**params.select.model_dump(exclude={"k"}))

    def rank(images: Images, classes: int) -> dict[str, object]:
        target = means_of(images, classes, backbone, projection)
        return {
            method: asdict(rank_classes(method, source.mean, target.mean, settings, target.count, seed))
            for method in SELECTION_METHODS
        }

    for target in params.targets:
        path = folder / f"{seed}-{name}-{target}.json"
        if not path.exists():
            fractions = dict.fromkeys([params.finetune.fraction, *params.finetune.fractions])
            count = data.target_classes(target)
            rankings = {f"{f:g}": rank(data.target(target, f), count) for f in fractions}
            write_atomic(path, json.dumps(rankings))
    if data.arrays:
        mixed = data.mixed()
        write_atomic(
            folder / f"{seed}-{name}-mixed.json", json.dumps({"1": rank(mixed, int(mixed.labels.max()) + 1)})
        )


def means_of(images: Images, classes: int, backbone: nn.Module, projection: nn.Module | None) -> ClassMeans:
    """Class means of the features of all these images, without augmentation."""
    return class_means(((features(backbone, x, projection), y) for x, y in images.once()), classes)


def kept_means(data: PreparedData, weights: Path, seed: int, folder: Path) -> Path:
    """File of the source's class means.

    Photographs and released weights are the same for every seed, generated data is not.
    """
    source = f"seed{seed}" if data.arrays else "folders"
    return folder / f"means-{source}-{sha256(weights)[:16]}.safetensors"


def source_means(
    data: PreparedData, backbone: nn.Module, projection: nn.Module | None, path: Path
) -> ClassMeans:
    """Class means of the whole source, read from `path` where an earlier seed or a killed run left them."""
    if path.exists():
        kept = load_file(path)
        return ClassMeans(kept["sum"], kept["count"])
    means = means_of(data.source(), len(data.source_groups), backbone, projection)
    write_atomic(path, save({"sum": means.sum, "count": means.count}))
    return means


if __name__ == "__main__":
    run(main)
