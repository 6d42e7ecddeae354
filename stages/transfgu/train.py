"""transfgu-train: the heads of one method and seed.

Reads `data/transfgu/<scale>/<seed>/`, `runs/transfgu/<scale>/pretrain/<seed>/` and `pseudo_label/<seed>/`. Writes
`runs/transfgu/<scale>/train/<method>-<seed>/`, per row: `<row>.safetensors`, the head, and `<row>.json`, losses by epoch.
"""

import json
import shutil
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import start_device
from stages.common.stage.errors import ParameterError
from stages.common.stage.files import output_dir, write_atomic
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, cell_arguments, run
from stages.transfgu.cells import Job, concept_counts, jobs_of, pretrained_backbone, run_log
from stages.transfgu.data import PreparedData
from stages.transfgu.maps import PseudoMaps
from stages.transfgu.official import to_official
from stages.transfgu.params import TransfguParams
from stages.transfgu.rivals import train_picie, train_stego
from stages.transfgu.training import new_head, total_steps, train_head, training_crops

METHODS = ("transfgu", "ablation", "sweep", "random", "shuffled", "picie", "stego")


def main() -> None:
    """Train one cell of the matrix."""
    cell = cell_arguments("one method and seed", method=METHODS, seed=int)
    params = load_params(TransfguParams, "transfgu")
    prepared, runs = (
        Path("data/transfgu") / params.scale / str(cell.seed),
        Path("runs/transfgu") / params.scale,
    )
    pretrained, maps = runs / "pretrain" / str(cell.seed), runs / "pseudo_label" / str(cell.seed)
    with Stage("transfgu-train", params, [prepared, pretrained, maps], cell.seed, cell.method) as stage:
        jobs = jobs_of(cell.method, params)
        work = partial(
            train,
            params=params,
            prepared=prepared,
            pretrained=pretrained,
            maps=maps,
            seed=cell.seed,
            folder=stage.work,
        )
        rival = jobs[0].kind != "head"
        count = len(PreparedData(prepared, params).train)
        if count * params.train.repeat < params.train.batch:
            raise ParameterError(
                f"transfgu.train.batch = {params.train.batch}: an epoch has {count * params.train.repeat} images"
            )
        steps = params.rivals.rounds * params.rivals.steps if rival else total_steps(params.train, count)
        with progress(f"transfgu-train {cell.method} seed {cell.seed}", len(jobs) * steps) as bar:
            for job, _ in run_jobs(work, jobs):
                bar.note(job.row)
        with output_dir(runs / "train" / f"{cell.method}-{cell.seed}") as output:
            for job in jobs:
                for suffix in ("safetensors", "json"):
                    shutil.copy(stage.work / f"{job.row}.{suffix}", output)


def train(
    job: Job, params: TransfguParams, prepared: Path, pretrained: Path, maps: Path, seed: int, folder: Path
) -> None:
    """Train one row; leaves `<row>.safetensors` and `<row>.json` in `folder`."""
    path = folder / f"{job.row}.json"
    if path.exists():
        return
    device = start_device()
    model = pretrained_backbone(job.backbone, params, pretrained, seed, device)
    images, size = PreparedData(prepared, params).train, (params.data.height, params.data.width)
    things, stuff = concept_counts(params, job.factor)
    history: list[dict[str, float]] = []
    with run_log(params, job.row, seed) as log:
        if job.kind == "head":
            pseudo = PseudoMaps.load(maps / f"{job.concepts}.safetensors")
            background = params.cluster.background
            head = new_head(params.train, things + stuff + background, model.width, seed).to(device)
            crops = training_crops(params.train, images, pseudo, model, size)
            checkpoint = Checkpoint(folder / f"{job.row}.ckpt")
            history = train_head(head, crops, params.train, job.terms, background, seed, log, checkpoint)
            state = {**to_official(head), "heads": torch.tensor(params.train.heads)}
        else:
            fit = train_picie if job.kind == "picie" else train_stego
            clusters = things + stuff + params.cluster.background
            state = fit(model, images, size, clusters, params.rivals, seed, log)
    save_file(state, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path.with_suffix(".safetensors"))
    # last: its presence says that the head is there too
    write_atomic(path, json.dumps(history))


if __name__ == "__main__":
    run(main)
