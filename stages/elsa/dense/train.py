"""elsa-dense-train: one mixer and seed as the backbone of the detector and of the segmentor.

Reads `data/elsa-dense/<scale>/` (and `pretrained`, where it is given). Writes
`runs/elsa-dense/<scale>/train/<mixer>-<seed>/<task>.safetensors`.
"""

import shutil
from functools import partial
from pathlib import Path
from typing import get_args

from safetensors.torch import save_file

from stages.common.dense.training import fit
from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, start_device
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, cell_arguments, run
from stages.elsa.dense.cells import TASKS, run_log, section_of
from stages.elsa.dense.data import augmentation, class_count, open_data
from stages.elsa.dense.networks import build_network, load_pretrained
from stages.elsa.dense.params import ElsaDenseParams, Task
from stages.elsa.params import MixerName


def main() -> None:
    """Train one cell of the matrix."""
    cell = cell_arguments("one mixer and seed", mixer=get_args(MixerName), seed=int)
    params = load_params(ElsaDenseParams, "elsa-dense")
    prepared = Path("data/elsa-dense") / params.scale
    inputs = [prepared]
    if params.pretrained is not None:
        inputs.append(Path(params.pretrained) / f"{cell.mixer}-{cell.seed}")
    with Stage("elsa-dense-train", params, inputs, cell.seed, cell.mixer) as stage:
        work = partial(
            train, mixer=cell.mixer, seed=cell.seed, params=params, prepared=prepared, folder=stage.work
        )
        steps = sum(section_of(params, task).recipe.steps for task in TASKS)
        with progress(f"elsa-dense-train {cell.mixer} seed {cell.seed}", steps) as bar:
            for task, _ in run_jobs(work, TASKS):
                bar.note(task)
        if not is_main():
            return
        with output_dir(
            Path("runs/elsa-dense") / params.scale / "train" / f"{cell.mixer}-{cell.seed}"
        ) as output:
            for task in TASKS:
                shutil.copy(stage.work / f"{task}.safetensors", output)


def train(
    task: Task, mixer: MixerName, seed: int, params: ElsaDenseParams, prepared: Path, folder: Path
) -> None:
    """Train one network; leaves `<task>.safetensors` in `folder`."""
    path = folder / f"{task}.safetensors"
    if path.exists():
        return
    device, images = start_device(), open_data(task, prepared, "train", params)
    model, body = build_network(task, mixer, seed, class_count(images), params)
    if params.pretrained is not None:
        load_pretrained(body, Path(params.pretrained), mixer, seed)
    recipe = section_of(params, task).recipe
    checkpoint = Checkpoint(folder / f"{task}.ckpt")
    with run_log(params, task, mixer, seed) as log:
        fit(model.to(device), images, augmentation(task, params), recipe, seed, log, checkpoint, device)
    if is_main():
        part = path.with_suffix(".part")
        save_file({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, part)
        part.rename(path)


if __name__ == "__main__":
    run(main)
