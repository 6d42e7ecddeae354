"""zendet-train: one backbone under every head and with every seed, from scratch.

The seeds are trainings of one cell: side by side they keep the cores busy, one alone does not. Reads
`data/zendet/<scale>/` and the backbone's searches in `runs/zendet/<scale>/search/<backbone>/`. Writes
`runs/zendet/<scale>/train/<backbone>/`, per seed `structure-<seed>.txt` and per head `<head>-<seed>.safetensors`, the
detector.
"""

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import save_file

from stages.common.dense.batches import flip
from stages.common.dense.coco import open_coco
from stages.common.dense.training import fit
from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, start_device
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, cell_arguments, run
from stages.zendet.cells import run_log
from stages.zendet.detector import build_detector
from stages.zendet.method.structure import Structure, dump_structure, read_structure
from stages.zendet.params import HeadName, Strategy, ZendetParams


def main() -> None:
    """Train one cell of the matrix."""
    cell = cell_arguments("one backbone", backbone=get_args(Strategy))
    params = load_params(ZendetParams, "zendet")
    prepared, runs = Path("data/zendet") / params.scale, Path("runs/zendet") / params.scale
    found = {seed: runs / "search" / cell.backbone / str(seed) for seed in params.seeds}
    with Stage("zendet-train", params, [prepared, *found.values()], cell=cell.backbone) as stage:
        structures = {seed: read_structure(folder / "main.txt") for seed, folder in found.items()}
        jobs = [(head, seed) for head in params.heads for seed in params.seeds]
        work = partial(
            train,
            backbone=cell.backbone,
            structures=structures,
            params=params,
            prepared=prepared,
            folder=stage.work,
        )
        with progress(f"zendet-train {cell.backbone}", params.train.steps * len(jobs)) as bar:
            for (head, seed), _ in run_jobs(work, jobs):
                bar.note(f"{head} seed {seed}")
        if not is_main():
            return
        with output_dir(runs / "train" / cell.backbone) as output:
            for seed, structure in structures.items():
                (output / f"structure-{seed}.txt").write_text(dump_structure(structure))
            for head, seed in jobs:
                shutil.copy(stage.work / f"{head}-{seed}.safetensors", output)


def train(
    job: tuple[HeadName, int],
    backbone: Strategy,
    structures: Mapping[int, Structure],
    params: ZendetParams,
    prepared: Path,
    folder: Path,
) -> None:
    """Train one detector, a head and a seed; leaves `<head>-<seed>.safetensors` in `folder`."""
    head, seed = job
    path = folder / f"{head}-{seed}.safetensors"
    if path.exists():
        return
    structure = structures[seed]
    device, images = start_device(), open_coco(prepared, "train", first_label=0, masks=False)
    torch.manual_seed(seed)
    model = build_detector(structure, head, len(images.categories), params.detector).to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with run_log(params, backbone, structure, head, seed) as log:
        fit(model, images, flip, params.train, seed, log, Checkpoint(path.with_suffix(".ckpt")), device)
    if not is_main():
        return
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    temporary = path.with_suffix(".tmp")
    save_file(state, temporary)
    temporary.replace(path)  # its presence says that it is whole


if __name__ == "__main__":
    run(main)
