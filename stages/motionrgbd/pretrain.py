"""motionrgbd-pretrain: the unimodal networks of one method and seed.

Reads `data/motionrgbd/<scale>/<seed>/`. Writes `runs/motionrgbd/<scale>/pretrain/<method>-<seed>/`, per training
`<row>-<modality>.safetensors` and `<row>-<modality>.json`, losses by epoch. `full` trains RGB and depth; `ablation` the rows
that change one thing, on one modality and fewer clips.
"""

import json
import shutil
from functools import partial
from pathlib import Path

from safetensors.torch import save_file

from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, start_device
from stages.common.stage.errors import ParameterError
from stages.common.stage.files import output_dir, write_atomic
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, cell_arguments, run
from stages.motionrgbd.cells import (
    METHODS,
    Job,
    classes_of,
    clips_of,
    jobs_of,
    run_log,
    stem,
    target_of,
)
from stages.motionrgbd.data import open_clips
from stages.motionrgbd.networks import ROWS, build_unimodal
from stages.motionrgbd.official import start_from_released
from stages.motionrgbd.params import MotionrgbdParams
from stages.motionrgbd.training import UnimodalTask, fit, total_steps, unimodal_epochs


def main() -> None:
    """Train one cell of the matrix."""
    cell = cell_arguments("one method and seed", method=METHODS, seed=int)
    params = load_params(MotionrgbdParams, "motionrgbd")
    prepared = Path("data/motionrgbd") / params.scale / str(cell.seed)
    with Stage("motionrgbd-pretrain", params, [prepared], cell.seed, cell.method) as stage:
        jobs = jobs_of(cell.method, params)
        work = partial(
            train, method=cell.method, params=params, prepared=prepared, seed=cell.seed, folder=stage.work
        )
        with progress(f"motionrgbd-pretrain {cell.method} seed {cell.seed}", len(jobs)) as bar:
            for job, _ in run_jobs(work, jobs):
                bar.note(stem(job))
        if not is_main():
            return
        folder = Path("runs/motionrgbd") / params.scale / "pretrain" / f"{cell.method}-{cell.seed}"
        with output_dir(folder) as output:
            for job in jobs:
                for suffix in ("safetensors", "json"):
                    shutil.copy(stage.work / f"{stem(job)}.{suffix}", output)


def train(job: Job, method: str, params: MotionrgbdParams, prepared: Path, seed: int, folder: Path) -> None:
    """One training; leaves `<row>-<modality>.safetensors` and `.json` in `folder`.

    Raises:
        ParameterError: a batch is larger than the clips there are.
    """
    path = folder / f"{stem(job)}.json"
    if path.exists():
        return
    row, modality = job
    device, recipe = start_device(), params.pretrain.recipe
    # the window is a matter of the data, which a row may change too
    window = max(1, round(params.data.window * ROWS[row].window))
    clips = open_clips(
        prepared, "train", [modality], params.data.model_copy(update={"window": window}), device
    )
    ids_N = clips_of(method, params, clips)
    if total_steps(recipe, len(ids_N)) == 0:
        raise ParameterError(
            f"motionrgbd.pretrain.recipe.batch = {recipe.batch}: there are {len(ids_N)} clips"
        )
    net = build_unimodal(params, row, classes_of(method, params), seed)
    if params.pretrain.released is not None:
        start_from_released(net, Path(params.pretrain.released))
    task = UnimodalTask(net, modality, ROWS[row], recipe).to(device)
    with run_log(params, method, stem(job), seed) as log:
        label_N = target_of(method, params, clips.label_N)
        epochs = unimodal_epochs(params.pretrain, ROWS[row])
        checkpoint = Checkpoint(folder / f"{stem(job)}.ckpt")
        history = fit(task, clips, ids_N, label_N, recipe, epochs, seed, log, checkpoint)
    if is_main():
        save_file(task.net.state_dict(), path.with_suffix(".part"))
        path.with_suffix(".part").rename(path.with_suffix(".safetensors"))
        # last: its presence says that the weights are there too
        write_atomic(path, json.dumps(history))


if __name__ == "__main__":
    run(main)
