"""The one training loop of this paper: every row of its tables is trained by `fit`, under the same recipe.

It is deterministic in (seed, step), so that a checkpoint resumes to the same bytes.
"""

import contextlib
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, parallel
from stages.common.stage.progress import tick
from stages.common.stage.tracking import RunLog
from stages.elsa.data import CLASSES, ArrayData, FolderData
from stages.elsa.params import Recipe

LOG_STEPS = 20  # training loss is logged this often
CHECKPOINT_SECONDS = 60.0


def adamw(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; vectors and scalars are not decayed, `rb` and the ghost matrices are (card, "Pitfalls")."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    free = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, fused=True)


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear up to the peak over the warm-up, then a cosine to `min_lr`."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    part = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * 0.5 * (1 + math.cos(math.pi * part))


def fit(
    model: nn.Module,
    data: ArrayData | FolderData,
    recipe: Recipe,
    seed: int,
    log: RunLog,
    checkpoint: Checkpoint,
) -> None:
    """Train `model` in place; resumes from `checkpoint`."""
    optimizer = adamw(model, recipe)
    start = 0
    if saved := checkpoint.load():
        start = saved["step"]
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    autocast = (
        torch.autocast(data.device.type, torch.bfloat16)
        if recipe.precision == "bfloat16"
        else contextlib.nullcontext()
    )
    model.train()
    mix = _mixing(recipe)
    network = parallel(model, data.device)
    saved_at = time.monotonic()
    tick(start)
    batches = data.train(seed, start)
    for step in range(start, recipe.steps):
        tick()
        if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            if is_main():
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                checkpoint.save({**state, "step": step})
            saved_at = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        x_BCHW, y_B = next(batches)
        torch.manual_seed(seed * 1_000_003 + step)  # of stochastic depth
        np.random.seed((seed * 1_000_003 + step) % 2**32)  # noqa: NPY002  (timm's mixing draws from it)
        if mix is not None:
            x_BCHW, y_B = mix(x_BCHW, y_B)
        with autocast:
            loss = nn.functional.cross_entropy(network(x_BCHW), y_B, label_smoothing=_smoothing(recipe))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        if step % LOG_STEPS == 0:
            log.metrics({"train loss": loss.item(), "learning rate": optimizer.param_groups[0]["lr"]}, step)


def _mixing(recipe: Recipe) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Mixup and cutmix in turns, with smoothed labels; None where the recipe has none."""
    if not recipe.mixup:
        return None
    from timm.data import Mixup

    return Mixup(recipe.mixup, 1.0, label_smoothing=recipe.smoothing, num_classes=CLASSES[recipe.data])


def _smoothing(recipe: Recipe) -> float:
    return 0.0 if recipe.mixup else recipe.smoothing  # the mixing has smoothed them already


@torch.no_grad()
def accuracy(model: nn.Module, data: ArrayData | FolderData) -> float:
    """Top-1 on the test set, in percent."""
    model.eval()
    right, total = torch.zeros((), device=data.device), 0
    for x_BCHW, y_B in data.test():
        logits_BK: Tensor = model(x_BCHW)
        right += (logits_BK.argmax(1) == y_B).sum()
        total += len(y_B)
    return 100 * right.item() / total
