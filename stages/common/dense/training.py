"""Training a dense-task network: deterministic in (seed, step) on a CPU.

The network is called as torchvision's detectors are: in training `network(images, targets)` gives a dict of losses.
"""

import contextlib
import math
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from stages.common.dense.batches import PRIME, Augmentation, Item, training_batches
from stages.common.dense.params import Recipe
from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, parallel, process_share
from stages.common.stage.progress import tick
from stages.common.stage.tracking import RunLog

LOG_STEPS = 20  # losses are logged this often
CHECKPOINT_SECONDS = 60.0
MOMENTUM = 0.9


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear up to the peak over the warm-up, on top of the schedule."""
    part = step / recipe.steps
    match recipe.schedule:
        case "cosine":
            factor = 0.5 + 0.5 * math.cos(math.pi * part)
        case "linear":
            factor = 1 - part
        case "steps":
            factor = 0.1 ** sum(part >= drop for drop in recipe.drops)
    return recipe.lr * factor * min(1.0, (step + 1) / (recipe.warmup + 1))


def optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer; vectors and scalars (norms, biases) are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, fused=True)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=MOMENTUM)


def autocast_of(recipe: Recipe, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision where the recipe has it."""
    if recipe.precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def fit(
    model: nn.Module,
    images: Dataset[Item],
    augment: Augmentation,
    recipe: Recipe,
    seed: int,
    log: RunLog,
    checkpoint: Checkpoint,
    device: torch.device,
) -> None:
    """Train `model` in place, on `device`, where it is already; resumes from `checkpoint`."""
    allow_fast_kernels(device)
    optimizer = optimizer_of(model, recipe)
    first = 0
    if saved := checkpoint.load():
        first = saved["step"]
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    model.train()
    if process_share()[1] > 1 and device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place, below `model`
    network, saved_at = parallel(model, device), time.monotonic()
    tick(first)
    batches = training_batches(images, augment, recipe.batch, recipe.steps, seed, first, recipe.workers)
    for step, (pictures, targets) in enumerate(batches, first):
        tick()
        if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            if is_main():
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                checkpoint.save({**state, "step": step})
            saved_at = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        torch.manual_seed(PRIME * seed + step)  # of proposals that are sampled, image sizes, stochastic depth
        moved = [{name: value.to(device) for name, value in target.items()} for target in targets]
        with autocast_of(recipe, device):
            losses: dict[str, Tensor] = network([picture.to(device) for picture in pictures], moved)
            loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        if step % LOG_STEPS == 0:
            log.metrics({name: value.item() for name, value in losses.items()}, step)


def allow_fast_kernels(device: torch.device) -> None:
    """On a GPU torchvision's repeatable RoI align is plain Python that needs many times the memory."""
    if device.type == "cuda":
        torch.use_deterministic_algorithms(False)
