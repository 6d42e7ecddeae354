"""entroformer-pretrain: transforms and Entroformer with random masks, the start of every method.

Reads `data/entroformer/<scale>/`. Writes `runs/entroformer/<scale>/pretrain/<seed>/<track>.safetensors`: a two-pass
codec whose first pass was a random half of the positions (card, "Loss and schedules"). Track "codec" gives its
transforms to all methods; the Entroformer methods with hyperprior and context take its entropy model too, on both
tracks.
"""

import shutil
from functools import partial
from pathlib import Path

import torch

from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, start_device
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, cell_arguments, run
from stages.common.stage.tracking import RunLog, run_key
from stages.entroformer.cells import PRETRAINED, codec_spec, save_model
from stages.entroformer.data import TrainingCrops
from stages.entroformer.method.codec import ImageCodec
from stages.entroformer.params import EntroformerParams, TrackName
from stages.entroformer.training import train


def main() -> None:
    """Pre-train every track of one seed."""
    cell = cell_arguments("one seed", seed=int)
    params = load_params(EntroformerParams, "entroformer")
    prepared = Path("data/entroformer") / params.scale
    with Stage("entroformer-pretrain", params, [prepared], cell.seed) as stage:
        work = partial(pretrain, seed=cell.seed, params=params, prepared=prepared, folder=stage.work)
        with progress(f"entroformer-pretrain seed {cell.seed}", len(params.tracks)) as bar:
            for name, _ in run_jobs(work, list(params.tracks)):
                bar.advance(note=name)
        if not is_main():
            return
        with output_dir(Path("runs/entroformer") / params.scale / "pretrain" / str(cell.seed)) as output:
            for name in params.tracks:
                shutil.copy(stage.work / f"{name}.safetensors", output)


def pretrain(name: TrackName, seed: int, params: EntroformerParams, prepared: Path, folder: Path) -> None:
    """Pre-train one track; leaves `<track>.safetensors` in `folder`."""
    path = folder / f"{name}.safetensors"
    if path.exists():
        return
    track = params.tracks[name]
    torch.manual_seed(seed)
    codec = ImageCodec(codec_spec(PRETRAINED, track)).to(start_device())
    settings = track.model_dump(exclude={"methods", "lambdas", "steps"})
    with RunLog(
        paper="entroformer",
        name=f"pretrain {name} seed {seed}",
        key=run_key("entroformer", params.scale, "pretrain", name, seed, settings, params.data.model_dump()),
        params={"seed": seed, **settings},
        tags={"scale": params.scale, "data": params.data.source, "method": "pretrain"},
    ) as log:
        crops = TrainingCrops(prepared, track.crop)
        checkpoint = Checkpoint(folder / f"{name}.ckpt")
        train(
            codec,
            crops,
            track,
            track.pretrain_steps,
            track.pretrain_lambda,
            seed,
            log,
            checkpoint,
            random_masks=True,
        )
    if is_main():
        save_model(codec, path)


if __name__ == "__main__":
    run(main)
