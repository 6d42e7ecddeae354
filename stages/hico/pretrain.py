"""hico-pretrain: train one method with one seed.

Reads `data/hico/<scale>/<seed>/`. Writes `runs/hico/<scale>/pretrain/<method>-<seed>/`: `model.safetensors`
(encoder and heads), `record.json` (losses now and then, videos that could not be read) and `clips.png`, the clips
of one example of each of four videos, a row each. The method `scratch` is not trained.
"""

import json
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path

from safetensors.torch import save_file

from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, start_device
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, cell_arguments, run
from stages.common.video.strips import write_strip
from stages.hico.batches import ClipBatches
from stages.hico.cells import METHODS, build_model, run_log
from stages.hico.footage import Library
from stages.hico.params import HicoParams, MethodName
from stages.hico.training import MEMORY_FORMAT, History, pretrain, pretrain_steps

SHOWN = 4  # videos
FILES = ("model.safetensors", "record.json", "clips.png")


def main() -> None:
    """Train one cell of the matrix."""
    cell = cell_arguments("one method and seed", method=tuple(METHODS), seed=int)
    params = load_params(HicoParams, "hico")
    prepared = Path("data/hico") / params.scale / str(cell.seed)
    with Stage("hico-pretrain", params, [prepared], cell.seed, cell.method) as stage:
        work = partial(train, params=params, prepared=prepared, seed=cell.seed, folder=stage.work)
        videos = Library(prepared, params.clip, params.in_memory).footage.sets[METHODS[cell.method].source]
        steps = pretrain_steps(params.pretrain, len(videos))
        with progress(f"hico-pretrain {cell.method} seed {cell.seed}", steps):
            for _ in run_jobs(work, [cell.method]):
                pass
        if not is_main():
            return
        with output_dir(
            Path("runs/hico") / params.scale / "pretrain" / f"{cell.method}-{cell.seed}"
        ) as output:
            for name in FILES:
                shutil.copy(stage.work / name, output)


def train(method: MethodName, params: HicoParams, prepared: Path, seed: int, folder: Path) -> None:
    """Train one method; leaves `FILES` in `folder`."""
    device, row = start_device(), METHODS[method]
    library = Library(prepared, params.clip, params.in_memory)
    videos = library.footage.sets[row.source]
    model, history = build_model(params, method, seed).to(device), History()
    model = model.to(memory_format=MEMORY_FORMAT)  # type: ignore[call-overload]  # torch types it for tensors only
    with run_log(params, method, seed) as log:
        if method != "scratch":
            checkpoint = Checkpoint(folder / "training.ckpt")
            history = pretrain(model, row, library, videos, params, seed, device, log, checkpoint)
    if not is_main():
        return
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "record.json").write_text(json.dumps(asdict(history), indent=1) + "\n")
    shown = ClipBatches(library, videos, row.rule(params), SHOWN, 1, seed, params.on_bad)[0].clips
    strips = shown.unflatten(0, (-1, row.clips)).flatten(1, 2)
    write_strip(list(strips), folder / "clips.png", scale=max(1, 72 // params.clip.height))


if __name__ == "__main__":
    run(main)
