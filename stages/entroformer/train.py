"""entroformer-train: the entropy models of one family and seed, on every track and for every lambda.

Reads `data/entroformer/<scale>/` and `runs/entroformer/<scale>/pretrain/<seed>/`. Writes
`runs/entroformer/<scale>/train/<family>-<seed>/<track>-<method>-<lambda>.safetensors`: a codec each, which
`stages.entroformer.encode` takes as `--model`.

Every method sees the same number of batches: those that start from the pre-training get `steps` after its
`pretrain_steps`, the others get both.
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
from stages.entroformer.cells import METHODS, Job, codec_spec, jobs_of, load_model, run_log, save_model
from stages.entroformer.data import TrainingCrops
from stages.entroformer.method.codec import ImageCodec
from stages.entroformer.params import EntroformerParams
from stages.entroformer.training import train

FAMILIES = ("cnn", "entroformer", "ablation")
TRAIN_SEED = 500_009  # batches after the pre-training are others than its own


def main() -> None:
    """Train one cell of the matrix."""
    cell = cell_arguments("one family and seed", family=FAMILIES, seed=int)
    params = load_params(EntroformerParams, "entroformer")
    prepared, runs = Path("data/entroformer") / params.scale, Path("runs/entroformer") / params.scale
    pretrained = runs / "pretrain" / str(cell.seed)
    with Stage("entroformer-train", params, [prepared, pretrained], cell.seed, cell.family) as stage:
        jobs = jobs_of(cell.family, params)
        work = partial(
            train_method,
            seed=cell.seed,
            params=params,
            prepared=prepared,
            pretrained=pretrained,
            folder=stage.work,
        )
        with progress(f"entroformer-train {cell.family} seed {cell.seed}", len(jobs)) as bar:
            for job, _ in run_jobs(work, jobs):
                bar.advance(note=job.name)
        if not is_main():
            return
        with output_dir(runs / "train" / f"{cell.family}-{cell.seed}") as output:
            for job in jobs:
                shutil.copy(stage.work / f"{job.name}.safetensors", output)


def train_method(
    job: Job, seed: int, params: EntroformerParams, prepared: Path, pretrained: Path, folder: Path
) -> None:
    """Train one codec; leaves `<name>.safetensors` in `folder`."""
    path = folder / f"{job.name}.safetensors"
    if path.exists():
        return
    track, method = params.tracks[job.track], METHODS[job.method]
    torch.manual_seed(seed)
    codec = ImageCodec(codec_spec(method, track))
    start(codec, load_model(pretrained / f"{job.track}.safetensors"), method.warm)
    codec.to(start_device())
    steps = track.steps + (0 if method.warm else track.pretrain_steps)
    checkpoint = Checkpoint(folder / f"{job.name}.ckpt")
    with run_log(params, job, seed) as log:
        train(
            codec,
            TrainingCrops(prepared, track.crop),
            track,
            steps,
            job.trade_off,
            seed + TRAIN_SEED,
            log,
            checkpoint,
        )
    if is_main():
        save_model(codec, path)


def start(codec: ImageCodec, pretrained: ImageCodec, warm: bool) -> None:
    """Take over the pre-trained transforms, and with `warm` the entropy model; a serial start token stays new."""
    codec.analysis.load_state_dict(pretrained.analysis.state_dict())
    codec.synthesis.load_state_dict(pretrained.synthesis.state_dict())
    if warm:
        missing, unexpected = codec.entropy.load_state_dict(pretrained.entropy.state_dict(), strict=False)
        assert not unexpected
        assert set(missing) <= {"context.start_11D"}


if __name__ == "__main__":
    run(main)
