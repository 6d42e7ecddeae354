"""transfgu-pretrain: the encoders of one seed.

Reads `data/transfgu/<scale>/<seed>/`. Writes `runs/transfgu/<scale>/pretrain/<seed>/<backbone>.safetensors` and
`history.json` (loss, entropy and use of the prototypes). Backbones: `dino` (trained here without labels, on generated
images of one thing or on windows of the training images, unless released weights are named), `random` (the same network
untrained), `shuffled` (trained on images whose pixels are in random order: colours without shapes).
"""

import copy
import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import start_device
from stages.common.stage.files import output_dir, write_atomic
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress, tick
from stages.common.stage.run import Stage, cell_arguments, run
from stages.common.stage.tracking import RunLog, run_key
from stages.transfgu.cells import fresh_backbone
from stages.transfgu.data import Images, PreparedData
from stages.transfgu.method.augment import normalise
from stages.transfgu.method.dino import (
    DINOHead,
    DINOLoss,
    MultiCropAugment,
    cosine,
    random_windows,
    update_teacher,
)
from stages.transfgu.method.vision_transformer import VisionTransformer
from stages.transfgu.official import save_backbone
from stages.transfgu.params import BackboneName, Pretrain, TransfguParams
from stages.transfgu.scenes import shuffle_pixels

LOG_STEPS = 25
FROZEN_SHARE = 0.05  # of the steps, in which the prototypes do not move (DINO: the first epoch)
GRADIENT_NORM = 3.0
CHECKPOINT_SECONDS = 60.0
Draw = Callable[[int, Generator], Tensor]  # of images to train on: how many, with which generator


def main() -> None:
    """Make every encoder of one seed."""
    seed = cell_arguments("encoders of one seed", seed=int).seed
    params = load_params(TransfguParams, "transfgu")
    prepared = Path("data/transfgu") / params.scale / str(seed)
    with Stage("transfgu-pretrain", params, [prepared], seed) as stage:
        work = partial(make_backbone, params=params, prepared=prepared, seed=seed, folder=stage.work)
        names = [n for n in params.backbones if n != "dino" or params.backbone.weights == "train"]
        trained: list[BackboneName] = [name for name in names if name != "random"]
        if "random" in names:
            work("random")
        with progress(f"transfgu-pretrain seed {seed}", len(trained) * params.pretrain.steps) as bar:
            for name, _ in run_jobs(work, trained) if trained else ():
                bar.note(name)
        with output_dir(Path("runs/transfgu") / params.scale / "pretrain" / str(seed)) as output:
            history = {n: json.loads((stage.work / f"{n}.json").read_text()) for n in names}
            for name in names:
                shutil.copy(stage.work / f"{name}.safetensors", output)
            (output / "history.json").write_text(json.dumps(history))


def make_backbone(
    name: BackboneName, params: TransfguParams, prepared: Path, seed: int, folder: Path
) -> None:
    """Make one encoder; leaves `<name>.safetensors` and `<name>.json` in `folder`."""
    path = folder / f"{name}.json"
    if path.exists():
        return
    model = fresh_backbone(params, seed)
    history: list[dict[str, float]] = []
    if name != "random":
        log = RunLog(
            "transfgu",
            f"pretrain {name} seed {seed}",
            run_key("transfgu", params.scale, "pretrain", name, seed, params.pretrain.model_dump()),
            params={"backbone": name, "seed": seed, **params.pretrain.model_dump()},
            tags={"scale": params.scale, "method": name},
        )
        images = PreparedData(prepared, params).pretrain
        size = max(params.backbone.native * params.backbone.patch, params.pretrain.global_size)
        draw: Draw = partial(draw_images, images, size)
        if (
            not params.data.pretrain
        ):  # a generated image shows one thing; a photograph's windows rather do than the whole
            doubled = 2 * params.data.height, 2 * params.data.width
            draw = partial(draw_windows, images, size, doubled, params.windows.scales)
        with log:
            model, history = train_dino(
                model, draw, name == "shuffled", params.pretrain, seed, log,
                Checkpoint(folder / f"{name}.ckpt"),
            )  # fmt: skip
    save_backbone(model, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path.with_suffix(".safetensors"))
    # last: its presence says that the weights are there too
    write_atomic(path, json.dumps(history))


def draw_images(images: Images, size: int, batch: int, generator: Generator) -> Tensor:
    """Random whole images 0..255, `[B, 3, size, size]`."""
    return images.read(torch.randint(len(images), (batch,), generator=generator).tolist(), (size, size))


def draw_windows(
    images: Images, size: int, doubled: tuple[int, int], scales: list[float], batch: int, generator: Generator
) -> Tensor:
    """A random window of each of random images 0..255, `[B, 3, size, size]`."""
    x_BCHW = images.read(torch.randint(len(images), (batch,), generator=generator).tolist(), doubled)
    return random_windows(x_BCHW, scales, size, generator)


def train_dino(
    backbone: VisionTransformer,
    draw: Draw,
    shuffled: bool,
    recipe: Pretrain,
    seed: int,
    log: RunLog,
    checkpoint: Checkpoint,
) -> tuple[VisionTransformer, list[dict[str, float]]]:
    """Train a student; returns the teacher's encoder and what was logged. Draws depend on (seed, step) alone."""
    device = start_device()
    torch.manual_seed(seed)
    head = DINOHead(backbone.width, recipe.hidden, recipe.bottleneck, recipe.prototypes)
    student = nn.Sequential(backbone, head).to(device)
    teacher, loss = copy.deepcopy(student).requires_grad_(False), DINOLoss(recipe.prototypes).to(device)
    matrices = [p for p in student.parameters() if p.ndim > 1]
    others = [p for p in student.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay, foreach=True)
    augment = MultiCropAugment(
        recipe.global_size,
        recipe.local_size,
        recipe.locals,
        (recipe.global_scale[0], recipe.global_scale[1]),
        (recipe.local_scale[0], recipe.local_scale[1]),
        recipe.rotate,
    )
    start, history = 0, []
    if saved := checkpoint.load():
        for name, part in (
            ("student", student),
            ("teacher", teacher),
            ("loss", loss),
            ("optimizer", optimizer),
        ):
            part.load_state_dict(saved[name])
        start, history = int(saved["step"]), list(saved["history"])
    saved_at = time.monotonic()
    for step in range(start, recipe.steps):
        if time.monotonic() - saved_at >= CHECKPOINT_SECONDS:
            parts = {"student": student, "teacher": teacher, "loss": loss, "optimizer": optimizer}
            states = {name: part.state_dict() for name, part in parts.items()}  # type: ignore[attr-defined]
            checkpoint.save({**states, "step": step, "history": history})
            saved_at = time.monotonic()
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        x_BCHW = draw(recipe.batch, generator).to(device)
        if shuffled:
            x_BCHW = shuffle_pixels(x_BCHW, generator)
        wide_GBCHW, near_LBCHW = augment(x_BCHW / 255, generator)
        wide = normalise(255 * wide_GBCHW.flatten(0, 1))
        near = normalise(255 * near_LBCHW.flatten(0, 1))
        for group in optimizer.param_groups:
            group["lr"] = _rate(recipe, step)
        with torch.no_grad():
            teacher_GBP = teacher(wide).unflatten(0, (2, recipe.batch))
        # crops of equal size go through the network together
        features = torch.cat([student[0](wide), student[0](near)])
        student_VBP = student[1](features).unflatten(0, (2 + recipe.locals, recipe.batch))
        value = loss(student_VBP, teacher_GBP, recipe.teacher_temperature)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(student.parameters(), GRADIENT_NORM)
        if step < FROZEN_SHARE * recipe.steps:
            head.prototypes.weight.grad = None
        optimizer.step()
        update_teacher(teacher, student, cosine(recipe.momentum, 1.0, step / recipe.steps))
        tick()
        if step % LOG_STEPS == 0 or step == recipe.steps - 1:
            record = {"loss": value.item(), **_use(teacher_GBP, loss.centre, recipe.teacher_temperature)}
            log.metrics(record, step)
            history.append({"step": step, **record})
    trained = teacher[0].cpu()
    assert isinstance(trained, VisionTransformer)
    return trained, history


def _rate(recipe: Pretrain, step: int) -> float:
    """Linear warm-up, then a cosine to a hundredth."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    return cosine(recipe.lr, 0.01 * recipe.lr, (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup))


def _use(teacher_GBP: Tensor, centre_1P: Tensor, temperature: float) -> dict[str, float]:
    """Entropy of the teacher's answer to one crop, and of its mean answer, as numbers of prototypes: collapse shows here."""
    q_NP = ((teacher_GBP - centre_1P) / temperature).softmax(-1).flatten(0, 1)
    one = torch.special.entr(q_NP).sum(-1).mean().exp()
    used = torch.special.entr(q_NP.mean(0)).sum().exp()
    return {"prototypes per crop": one.item(), "prototypes used": used.item()}


if __name__ == "__main__":
    run(main)
