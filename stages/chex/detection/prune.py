"""chex-detection-prune: one method and seed, on every detector and at every FLOPs target.

Reads `data/chex-detection/<scale>/` and `runs/chex-detection/<scale>/pretrain/<seed>/`. Writes
`runs/chex-detection/<scale>/prune/<method>-<seed>/`, per detector and target: `<detector>-<target>.safetensors`, the
physically slim detector, and `<detector>-<target>.json` with the history of its widths and the largest difference
between its maps and the masked detector's.
"""

import json
import shutil
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stages.chex.detection.cells import open_images, run_log, setting_of
from stages.chex.detection.networks import build
from stages.chex.detection.params import DetectionParams, DetectorName, MethodName
from stages.chex.detection.ssd import SSD
from stages.chex.detection.training import METHODS, task_of
from stages.chex.method.slim import save_slim, slim
from stages.chex.rows import explorer_of, schedule_of
from stages.chex.sub_training import fit
from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, start_device
from stages.common.stage.files import output_dir, write_atomic
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, cell_arguments, run

Job = tuple[DetectorName, float]


def main() -> None:
    """Train and prune one cell of the matrix."""
    cell = cell_arguments("one method and seed", method=tuple(METHODS), seed=int)
    params = load_params(DetectionParams, "chex-detection")
    prepared, runs = Path("data/chex-detection") / params.scale, Path("runs/chex-detection") / params.scale
    pretrained = runs / "pretrain" / str(cell.seed)
    with Stage("chex-detection-prune", params, [prepared, pretrained], cell.seed, cell.method) as stage:
        jobs: list[Job] = [(name, target) for name, d in params.detectors.items() for target in d.prune.flops]
        work = partial(
            prune, method=cell.method, seed=cell.seed, params=params, prepared=prepared, pretrained=pretrained,
            folder=stage.work,
        )  # fmt: skip
        row = METHODS[cell.method]
        settings = [params.detectors[name] for name, _ in jobs]
        steps = sum(schedule_of(row, d.recipe.steps, d.prune).steps for d in settings)
        with progress(f"chex-detection-prune {cell.method} seed {cell.seed}", steps) as bar:
            for (name, target), _ in run_jobs(work, jobs):
                bar.note(f"{name} {target:g}")
        if not is_main():
            return
        with output_dir(runs / "prune" / f"{cell.method}-{cell.seed}") as output:
            for name, target in jobs:
                for suffix in ("safetensors", "json"):
                    shutil.copy(stage.work / f"{name}-{target:g}.{suffix}", output)


def prune(
    job: Job, method: MethodName, seed: int, params: DetectionParams, prepared: Path, pretrained: Path, folder: Path
) -> None:  # fmt: skip
    """Train one detector down to one target; leaves `<detector>-<target>.safetensors` and `.json` in `folder`."""
    detector, target = job
    path = folder / f"{detector}-{target:g}.json"
    if path.exists():
        return
    row, settings, device = METHODS[method], params.detectors[detector], start_device()
    steps = settings.recipe.steps
    schedule = schedule_of(row, steps, settings.prune)
    built = build(detector, settings.net, params.classes, seed, device)
    if schedule.finetune:
        built.model.load_state_dict(load_file(pretrained / f"{detector}-half.safetensors"))
    budget = target * built.macs([group.units for group in built.groups])
    explorer = explorer_of(row, built.model, built.groups, built.macs, budget, steps, settings.prune, seed)
    task = task_of(detector, settings, prepared, schedule, seed, device)
    with run_log(params, detector, method, setting_of(target), seed) as log:
        checkpoint = Checkpoint(folder / f"{detector}-{target:g}.ckpt")
        history = fit(built.model, built.groups, explorer, task, schedule, device, log, checkpoint)
    if not is_main():
        return
    network = slim(built.model.eval(), built.groups, explorer.masks)
    picture, _ = open_images(prepared, "val", detector)[0]
    pairs = zip(maps_of(built.model, picture.to(device)), maps_of(network, picture.to(device)), strict=True)
    difference = max(float((masked - slimmed).abs().max()) for masked, slimmed in pairs)
    save_slim(network, path.with_suffix(".safetensors"))
    record = {"slim_masked_difference": difference, "history": history}
    write_atomic(path, json.dumps(record))  # last: its presence says that the network is there too


@torch.no_grad()
def maps_of(model: nn.Module, picture_3HW: Tensor) -> list[Tensor]:
    """What heads and decoding see of an image: SSD's offsets and logits, Mask R-CNN's feature pyramid."""
    if isinstance(model, SSD):
        return list(model.predict([picture_3HW]))
    images, _ = model.get_submodule("transform")([picture_3HW])
    return list(model.get_submodule("backbone")(images.tensors).values())


if __name__ == "__main__":
    run(main)
