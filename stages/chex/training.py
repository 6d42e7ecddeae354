"""The one training loop of this paper: every row of its tables, dense or pruned, is trained by `fit`.

Between updates only the physically slim copy of the network is trained (`CompactModel`); at an update its values go back
into the full network, the explorer chooses new channels there, and a new slim copy is taken.
"""

import contextlib
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.chex.data import ArrayData, FolderData, accuracy
from stages.chex.method.channel_groups import ChannelGroup
from stages.chex.method.compact import CompactModel
from stages.chex.method.explorer import ChannelExplorer
from stages.chex.method.learning_rate import warmup_cosine
from stages.chex.method.losses import mixup
from stages.chex.params import Recipe
from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, parallel
from stages.common.stage.progress import tick
from stages.common.stage.tracking import RunLog

LOG_STEPS = 20  # training loss is logged this often
EVALUATIONS = 5  # test accuracy over training is logged at this many places, the end (chex-evaluate) included
EVALUATION_BATCHES = 4  # ... on so many test batches
CHECKPOINT_SECONDS = 60.0


@dataclass
class Schedule:
    """When to train and when to explore, in optimizer steps."""

    steps: int
    lr: float
    updates: Collection[int] = ()  # before these steps the explorer chooses channels anew
    final_update: int | None = None  # before this one it prunes to the target and regrows nothing


def sgd(module: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD with momentum; no weight decay on parameters with "bn" in their name, as released (card, recipe)."""
    decayed = [p for name, p in module.named_parameters() if "bn" not in name]
    free = [p for name, p in module.named_parameters() if "bn" in name]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, foreach=True)


def momentum_of(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Momentum buffers by parameter name."""
    states = ((name, optimizer.state.get(p, {})) for name, p in module.named_parameters())
    return {name: state["momentum_buffer"] for name, state in states if "momentum_buffer" in state}


def set_momentum(optimizer: torch.optim.Optimizer, module: nn.Module, momentum: dict[str, Tensor]) -> None:
    """Give the optimizer these momentum buffers."""
    for name, parameter in module.named_parameters():
        if name in momentum:
            optimizer.state[parameter]["momentum_buffer"] = momentum[name]


def fit(
    model: nn.Module,
    groups: list[ChannelGroup],
    explorer: ChannelExplorer,
    data: ArrayData | FolderData,
    recipe: Recipe,
    schedule: Schedule,
    seed: int,
    log: RunLog,
    checkpoint: Checkpoint,
) -> list[dict[str, Any]]:
    """Train `model` in place within the masks that `explorer` chooses on the way; resumes from `checkpoint`.

    Returns the history: for the start and every later choice of channels, its step and the active channels per group.
    """
    device = data.device
    history: list[dict[str, Any]] = [_widths(0, explorer)]
    start, momentum = 0, {}
    if saved := checkpoint.load():
        start, momentum, history = saved["step"], saved["momentum"], saved["history"]
        model.load_state_dict(saved["model"])
        explorer.load_state_dict(saved["explorer"])
    compact, network, optimizer = _take(model, groups, explorer, momentum, recipe, device)
    autocast = (
        torch.autocast(device.type, torch.bfloat16)
        if recipe.precision == "bfloat16"
        else contextlib.nullcontext()
    )
    evaluated = {schedule.steps * part // EVALUATIONS for part in range(1, EVALUATIONS)}
    saved_at = time.monotonic()
    tick(start)
    batches = data.train(seed, start)
    for step in range(start, schedule.steps):
        tick()
        if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            momentum = _put_back(compact, optimizer)
            if is_main():
                checkpoint.save(
                    {
                        "step": step, "momentum": momentum, "history": history, "model": model.state_dict(),
                        "explorer": explorer.state_dict(),
                    }
                )  # fmt: skip
            saved_at = time.monotonic()
        if step in schedule.updates or step == schedule.final_update:
            momentum = _put_back(compact, optimizer)
            update = explorer.step(step) if step in schedule.updates else explorer.finish()
            if update is not None:
                history.append(_widths(step, explorer))
                log.metrics({"active channels": sum(history[-1]["active"].values())}, step)
            compact, network, optimizer = _take(model, groups, explorer, momentum, recipe, device)
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(step, schedule.lr, recipe.warmup, schedule.steps)
        x_BCHW, y_B = next(batches)
        if recipe.mixup:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            x_BCHW, y_B = mixup(x_BCHW, y_B, data.classes, recipe.mixup, generator)
        with autocast:
            logits_BK = network(x_BCHW.to(memory_format=torch.channels_last))
            loss = nn.functional.cross_entropy(logits_BK, y_B, label_smoothing=recipe.smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % LOG_STEPS == 0:
            log.metrics({"train loss": loss.item(), "learning rate": optimizer.param_groups[0]["lr"]}, step)
        if step in evaluated:
            compact.module.eval()
            log.metrics({"top1 in training": accuracy(compact.module, data, EVALUATION_BATCHES)}, step)
            compact.module.train()
    _put_back(compact, optimizer)
    return history


def _take(
    model: nn.Module,
    groups: list[ChannelGroup],
    explorer: ChannelExplorer,
    momentum: dict[str, Tensor],
    recipe: Recipe,
    device: torch.device,
) -> tuple[CompactModel, nn.Module, torch.optim.SGD]:
    """The slim copy to train, as the step calls it, and its optimizer with the momentum of the surviving channels."""
    compact = CompactModel(model, groups, explorer.masks)
    compact.module.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = sgd(compact.module, recipe)
    set_momentum(optimizer, compact.module, compact.slice_state(momentum))
    return compact, parallel(compact.module, device), optimizer


def _put_back(compact: CompactModel, optimizer: torch.optim.SGD) -> dict[str, Tensor]:
    """Write the slim copy's values into the full network; returns the momentum in the full network's shapes."""
    compact.scatter_()
    return compact.scatter_state(momentum_of(optimizer, compact.module))


def _widths(step: int, explorer: ChannelExplorer) -> dict[str, Any]:
    return {"step": step, "active": {name: int(mask.sum()) for name, mask in explorer.masks.items()}}
