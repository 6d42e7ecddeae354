"""The training loop of this paper, for pre-training and for every method."""

import math
import time

import torch
from torch import nn

from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, parallel, process_share
from stages.common.stage.tracking import RunLog
from stages.entroformer.data import TrainingCrops, batches
from stages.entroformer.method.codec import ImageCodec
from stages.entroformer.method.context import random_visible
from stages.entroformer.params import Track

LOG_STEPS = 50
CHECKPOINT_SECONDS = 60.0
WARM_UP = 0.05  # of the steps
CLIP = 1.0  # of the gradient's norm, for each part of the codec on its own


def train(
    codec: ImageCodec,
    crops: TrainingCrops,
    track: Track,
    steps: int,
    trade_off: float,
    seed: int,
    log: RunLog,
    checkpoint: Checkpoint,
    random_masks: bool = False,
) -> None:
    """Train a codec in place: lambda * 255^2 * MSE + bits per pixel, the rate alone where the transform is fixed.

    Deterministic in (seed, step), so that a checkpoint resumes to the same bytes. Reconstructions are not clamped:
    the authors' clamp takes the gradient from what is outside [0, 1] (card, "Pitfalls").

    Args:
        random_masks: pre-training, where the first pass is a random half instead of the checkerboard.
    """
    device = next(codec.entropy.parameters()).device
    optimizer = torch.optim.AdamW(codec.parameters(), track.lr, weight_decay=0.0, foreach=True)
    first = 0
    if saved := checkpoint.load():
        codec.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = int(saved["step"])
    saved_at = time.monotonic()
    codec.train()
    network = parallel(codec, device)
    rank, processes = process_share()
    size = max(1, track.batch // processes)
    for step, (x, generator) in enumerate(batches(crops, size, seed + 7919 * rank, first, steps), first):
        if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            saved_at = time.monotonic()
            if is_main():
                checkpoint.save(
                    {"model": codec.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                )
        for group in optimizer.param_groups:
            group["lr"] = track.lr * step_factor(step, steps)
        x = x.to(device)
        visible = None
        if random_masks:
            visible = random_visible(
                x.shape[2] // codec.spec.stride, x.shape[3] // codec.spec.stride, generator
            )
        x_hat, rates = network(x, generator, visible)
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        bpp = rates.bits() / pixels
        loss = bpp
        if codec.spec.transform == "conv":
            mse = (x_hat - x).square().mean()
            loss = loss + trade_off * 255**2 * mse
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip(codec)
        optimizer.step()
        if step % LOG_STEPS == 0:
            values = {"train bpp": bpp.item()}
            if codec.spec.transform == "conv":
                values["train psnr"] = -10 * math.log10(mse.item())
            log.metrics(values, step)
    codec.eval()


def step_factor(step: int, steps: int) -> float:
    """Linear warm-up over the first 5 % of the steps, then a cosine to zero."""
    warm = max(1.0, WARM_UP * steps)
    return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))


def clip(codec: ImageCodec) -> None:
    """Clip the gradient of each part on its own, as the authors do."""
    parts: list[nn.Module] = [codec.analysis, codec.synthesis, *codec.entropy.children()]
    for part in parts:
        if own := list(part.parameters()):
            nn.utils.clip_grad_norm_(own, CLIP)
