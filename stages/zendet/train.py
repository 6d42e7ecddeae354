"""zendet-train: one backbone and seed under every head, from scratch.

Reads `data/zendet/<scale>/` and the backbone's search in `runs/zendet/<scale>/search/`. Writes
`runs/zendet/<scale>/train/<backbone>-<seed>/`: `structure.txt` and per head `<head>.safetensors`, the detector.
"""

import shutil
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
    cell = cell_arguments("one backbone and seed", backbone=get_args(Strategy), seed=int)
    params = load_params(ZendetParams, "zendet")
    prepared, runs = Path("data/zendet") / params.scale, Path("runs/zendet") / params.scale
    found = runs / "search" / f"{cell.backbone}-{cell.seed}"
    with Stage("zendet-train", params, [prepared, found], cell.seed, cell.backbone) as stage:
        structure = read_structure(found / "main.txt")
        work = partial(
            train,
            backbone=cell.backbone,
            structure=structure,
            seed=cell.seed,
            params=params,
            prepared=prepared,
            folder=stage.work,
        )
        steps = params.train.steps * len(params.heads)
        with progress(f"zendet-train {cell.backbone} seed {cell.seed}", steps) as bar:
            for head, _ in run_jobs(work, params.heads):
                bar.note(head)
        if not is_main():
            return
        with output_dir(runs / "train" / f"{cell.backbone}-{cell.seed}") as output:
            (output / "structure.txt").write_text(dump_structure(structure))
            for head in params.heads:
                shutil.copy(stage.work / f"{head}.safetensors", output)


def train(
    head: HeadName,
    backbone: Strategy,
    structure: Structure,
    seed: int,
    params: ZendetParams,
    prepared: Path,
    folder: Path,
) -> None:
    """Train one detector; leaves `<head>.safetensors` in `folder`."""
    path = folder / f"{head}.safetensors"
    if path.exists():
        return
    device, images = start_device(), open_coco(prepared, "train", first_label=0, masks=False)
    torch.manual_seed(seed)
    model = build_detector(structure, head, len(images.categories), params.detector).to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with run_log(params, backbone, structure, head, seed) as log:
        fit(model, images, flip, params.train, seed, log, Checkpoint(folder / f"{head}.ckpt"), device)
    if not is_main():
        return
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    temporary = path.with_suffix(".tmp")
    save_file(state, temporary)
    temporary.replace(path)  # its presence says that it is whole


if __name__ == "__main__":
    run(main)
