"""motionrgbd-finetune: the fusions of one kind and seed, from both trained unimodal networks.

Reads `data/motionrgbd/<scale>/<seed>/` and `runs/motionrgbd/<scale>/pretrain/full-<seed>/`. Writes
`runs/motionrgbd/<scale>/finetune/<fusion>-<seed>/`, per row `<row>.safetensors` and `<row>.json`, losses by epoch.
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
from stages.motionrgbd.cells import FUSION_ROWS, FUSIONS, new_fusion, run_log
from stages.motionrgbd.data import few, open_clips
from stages.motionrgbd.params import MODALITIES, FusionRow, MotionrgbdParams
from stages.motionrgbd.training import FusionTask, fit, fusion_epochs, total_steps


def main() -> None:
    """Train one cell of the matrix."""
    cell = cell_arguments("one fusion and seed", method=FUSIONS, seed=int)
    params = load_params(MotionrgbdParams, "motionrgbd")
    prepared = Path("data/motionrgbd") / params.scale / str(cell.seed)
    runs = Path("runs/motionrgbd") / params.scale
    pretrained = runs / "pretrain" / f"full-{cell.seed}"
    with Stage("motionrgbd-finetune", params, [prepared, pretrained], cell.seed, cell.method) as stage:
        rows = FUSION_ROWS[cell.method]
        work = partial(
            train, method=cell.method, params=params, prepared=prepared, pretrained=pretrained, seed=cell.seed,
            folder=stage.work,
        )  # fmt: skip
        with progress(f"motionrgbd-finetune {cell.method} seed {cell.seed}", len(rows)) as bar:
            for row, _ in run_jobs(work, rows):
                bar.note(row)
        if not is_main():
            return
        with output_dir(runs / "finetune" / f"{cell.method}-{cell.seed}") as output:
            for row in rows:
                for suffix in ("safetensors", "json"):
                    shutil.copy(stage.work / f"{row}.{suffix}", output)


def train(
    row: FusionRow, method: str, params: MotionrgbdParams, prepared: Path, pretrained: Path, seed: int,
    folder: Path,
) -> None:  # fmt: skip
    """One training; leaves `<row>.safetensors` and `.json` in `folder`.

    Raises:
        ParameterError: a batch is larger than the clips there are.
    """
    path = folder / f"{row}.json"
    if path.exists():
        return
    device, recipe = start_device(), params.finetune
    clips = open_clips(prepared, "train", MODALITIES, params.data, device)
    ids_N = few(clips.label_N, 0)
    if total_steps(recipe, len(ids_N)) == 0:
        raise ParameterError(f"motionrgbd.finetune.batch = {recipe.batch}: there are {len(ids_N)} clips")
    task = FusionTask(new_fusion(params, row, pretrained, seed), recipe).to(device)
    with run_log(params, method, row, seed) as log:
        checkpoint = Checkpoint(folder / f"{row}.ckpt")
        history = fit(task, clips, ids_N, clips.label_N, recipe, fusion_epochs, seed, log, checkpoint)
    if is_main():
        save_file(task.net.state_dict(), path.with_suffix(".part"))
        path.with_suffix(".part").rename(path.with_suffix(".safetensors"))
        # last: its presence says that the weights are there too
        write_atomic(path, json.dumps(history))


if __name__ == "__main__":
    run(main)
