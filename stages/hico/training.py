"""The training loops: pre-training on clips of a video, and classification on top.

Both are deterministic in (seed, step), so that a checkpoint resumes to the same bytes.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, parallel, process_share
from stages.common.stage.progress import tick
from stages.common.stage.tracking import RunLog
from stages.common.video.augment import ClipAugment, Jitter, centre_crop
from stages.hico.batches import ClipBatches, load_ahead, step_generator
from stages.hico.cells import Method
from stages.hico.footage import Library, Video
from stages.hico.method.encoders import HiCoModel, VideoClassifier, pooled
from stages.hico.method.lars import LARS, parameter_groups
from stages.hico.method.learning_rate import cosine_warmup_lr, scaled_lr
from stages.hico.method.losses import gather_with_local_gradient, simclr_loss, tcl_loss, vcl_loss
from stages.hico.params import Augmentation, HicoParams, Mode, Pretrain

MEMORY_FORMAT = torch.channels_last_3d  # 3-D convolutions of few channels take a quarter less time
LOG_STEPS = 25  # losses are logged this often
CHECKPOINT_SECONDS = 60.0
EVALUATION_CLIPS = 240  # of a batch


@dataclass
class History:
    """What a training leaves beside the weights: (step, losses) now and then, and the videos that could not be read."""

    losses: list[dict[str, float]] = field(default_factory=list)
    bad: dict[str, int] = field(default_factory=dict)


def clip_augment(recipe: Augmentation, size: int) -> ClipAugment:
    """The augmentation that the parameters describe."""
    low, high = recipe.area
    narrow, wide = recipe.aspect
    jitter = Jitter(recipe.jitter, recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    return ClipAugment(
        size,
        (low, high),
        (narrow, wide),
        recipe.flip,
        jitter=jitter if recipe.jitter else None,
        gray=recipe.gray,
        gray_first=recipe.gray_first,
        blur=(recipe.blur, 0.1, 2.0) if recipe.blur else None,
    )


def pretrain_steps(recipe: Pretrain, videos: int) -> int:
    """Steps of a training on this many videos."""
    return recipe.length * (1 if recipe.unit == "steps" else max(videos // recipe.batch, 1))


def pretrain(
    model: HiCoModel,
    method: Method,
    library: Library,
    videos: Sequence[Video],
    params: HicoParams,
    seed: int,
    device: torch.device,
    log: RunLog,
    checkpoint: Checkpoint,
) -> History:
    """Train `model` in place on clips of `videos`."""
    recipe = params.pretrain
    steps = pretrain_steps(recipe, len(videos))
    augment = clip_augment(recipe.augmentation, params.clip.size)
    rule = method.rule(params)
    library.decode(videos)
    gamma = recipe.gamma if method.gamma is None else method.gamma
    optimizer, base = _optimizer(model, recipe, method.clips)
    history = History()
    start = resume(checkpoint, model, optimizer, history)
    model.train()
    if torch.distributed.is_initialized() and device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    network, world = parallel(model, device), process_share()[1]
    batches = ClipBatches(library, videos, rule, recipe.batch, steps, seed, params.on_bad)
    saved_at = asked_at = time.monotonic()
    waited = 0.0
    for step, batch in enumerate(load_ahead(batches, start, params.workers, device), start):
        waited += time.monotonic() - asked_at
        saved_at = save_state(checkpoint, model, optimizer, step, saved_at, history)
        for reason in batch.bad:
            history.bad[reason] = history.bad.get(reason, 0) + 1
        rate = cosine_warmup_lr(step, base, recipe.warmup_lr, recipe.warmup * steps, steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        clips = batch.clips.to(device, non_blocking=True)
        x = augment(clips, augment.draw(len(clips), step_generator(seed, step)))
        x = x.contiguous(memory_format=MEMORY_FORMAT)
        with _autocast(recipe.precision, device):
            z_nd, a_nn = network(x)
        z_Nd = gather_with_local_gradient(z_nd.float())
        losses: dict[str, Tensor] = {}
        total = 0.0 * z_Nd.sum()  # whatever the row trains, DDP wants a gradient for all of it
        if method.visual:
            pairs = simclr_loss if method.loss == "simclr" else vcl_loss
            losses["VCL"] = pairs(z_Nd, method.clips, recipe.temperature)
            total = (
                total + losses["VCL"] * world
            )  # DDP averages; each process has the gradient of its own rows
        if a_nn is not None:
            losses["TCL"] = tcl_loss(a_nn, method.clips, gamma)
            total = total + (method.topic or 0.0) * losses["TCL"]
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        tick()
        if step % LOG_STEPS == 0 or step == steps - 1:
            values = {name: value.item() for name, value in losses.items()}
            history.losses.append({"step": float(step), **values})
            log.metrics({**values, "learning rate": rate}, step)
        asked_at = time.monotonic()
    log.metrics({"seconds waited for data": waited, "CPU seconds": time.process_time()}, steps)
    return history


def _optimizer(model: nn.Module, recipe: Pretrain, n_clips: int) -> tuple[torch.optim.Optimizer, float]:
    """The optimiser and its peak rate."""
    if recipe.optimizer == "adamw":
        optimizer = torch.optim.AdamW(
            model.parameters(), recipe.lr, weight_decay=recipe.weight_decay, foreach=True
        )
        return optimizer, recipe.lr
    groups = parameter_groups(model, recipe.weight_decay, recipe.exclude)
    base = scaled_lr(recipe.lr, recipe.batch, n_clips)
    return LARS(groups, base), base


def finetune(
    model: VideoClassifier,
    mode: Mode,
    library: Library,
    videos: Sequence[Video],
    params: HicoParams,
    seed: int,
    device: torch.device,
    log: RunLog,
    checkpoint: Checkpoint,
) -> None:
    """Train `model` in place on labelled videos: all of it, or ("lft") its last layer while BN statistics adapt.

    Raises:
        VideoError: a video cannot be decoded.
    """
    recipe = params.finetune
    per_epoch = max(len(videos) // recipe.batch, 1)
    steps = recipe.epochs * per_epoch
    augment = clip_augment(recipe.augmentation, params.clip.size)
    trained = model.out if mode == "lft" else model
    model.encoder.requires_grad_(mode == "full")
    optimizer = torch.optim.Adam(
        trained.parameters(), recipe.lr, weight_decay=recipe.weight_decay, foreach=True
    )
    start = resume(checkpoint, model, optimizer, History())
    model.train()
    network = parallel(model, device)
    # a labelled video that cannot be decoded is refused: another one in its place would change what is measured
    batches = ClipBatches(library, videos, None, recipe.batch, steps, seed, "refuse")
    saved_at = time.monotonic()
    for step, batch in enumerate(load_ahead(batches, start, params.workers, device), start):
        saved_at = save_state(checkpoint, model, optimizer, step, saved_at, History())
        rate = cosine_warmup_lr(step / per_epoch, recipe.lr, recipe.warmup_lr, recipe.warmup, recipe.epochs)
        for group in optimizer.param_groups:
            group["lr"] = rate
        clips = batch.clips.to(device, non_blocking=True)
        x = augment(clips, augment.draw(len(clips), step_generator(seed, step)))
        x = x.contiguous(memory_format=MEMORY_FORMAT)
        with _autocast(params.pretrain.precision, device):
            logits = network(x)
        loss = F.cross_entropy(logits.float(), batch.labels.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % LOG_STEPS == 0:
            log.metrics({f"{mode} loss": loss.item()}, step)


@torch.no_grad()
def over_views(
    function: Callable[[Tensor], Tensor],
    library: Library,
    videos: Sequence[Video],
    views: int,
    params: HicoParams,
    device: torch.device,
) -> Tensor:
    """`function` of centre crops, averaged over the views of each video: `[videos, ...]` on the CPU."""
    library.decode(videos)
    share = params.clip.size / min(
        params.clip.height, params.clip.width
    )  # 112 of 128: the official 224 of 256
    rows = []
    for clips, places in library.batches(videos, views, max(EVALUATION_CLIPS // views, 1)):
        x = centre_crop(clips.to(device), params.clip.size, share).contiguous(memory_format=MEMORY_FORMAT)
        rows.append(function(x).float().view(len(places), views, -1).mean(1).cpu())
    return torch.cat(rows)


def frozen_features(
    encoder: nn.Module,
    library: Library,
    videos: Sequence[Video],
    views: int,
    params: HicoParams,
    device: torch.device,
) -> Tensor:
    """Pooled features `[videos, C]` of an encoder in eval mode, averaged over views."""
    encoder.eval()
    return over_views(lambda x: pooled(encoder, x), library, videos, views, params, device)


def _autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    return (
        torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else contextlib.nullcontext()
    )


def resume(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, history: History
) -> int:
    """Put back what was saved; returns the step to go on with."""
    saved = checkpoint.load()
    if saved is None:
        return 0
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    history.losses, history.bad = saved["losses"], saved["bad"]
    return int(saved["step"])


def save_state(
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    saved_at: float,
    history: History,
) -> float:
    """Save the state before `step` when the last time is long ago; returns when that was."""
    if time.monotonic() - saved_at < CHECKPOINT_SECONDS:
        return saved_at
    if is_main():
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        checkpoint.save({**state, "step": step, "losses": history.losses, "bad": history.bad})
    return time.monotonic()
