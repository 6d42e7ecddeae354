"""The training loop of one network, unimodal or fusion. Draws depend on (seed, step) alone.

Shapes: B clips, T frames, K classes.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import parallel, process_share
from stages.common.stage.progress import tick
from stages.common.stage.tracking import RunLog
from stages.motionrgbd.data import Clips, Views, draws
from stages.motionrgbd.method.baselines import shuffled_maps
from stages.motionrgbd.method.capf import CAPF, ConcatFusion, fusion_loss
from stages.motionrgbd.method.losses import distillation_of, multi_branch_loss
from stages.motionrgbd.method.schedules import SharpnessSchedule, distillation_weight, learning_rate
from stages.motionrgbd.method.unimodal import UnimodalNet
from stages.motionrgbd.networks import Row
from stages.motionrgbd.params import Modality, Pretrain, Recipe

CHECKPOINT_SECONDS = 60.0
EVALUATION_BATCH = 64
History = list[dict[str, float]]


class Epoch(NamedTuple):
    """What changes over epochs."""

    temperature: float
    distillation: float  # its weight


class UnimodalTask(nn.Module):
    """The loss of one modality. Baselines without branches have a cross-entropy alone."""

    def __init__(self, net: nn.Module, modality: Modality, row: Row, recipe: Recipe) -> None:
        super().__init__()
        self.net, self.modality, self.row, self.recipe = net, modality, row, recipe
        self.tau = row.tau * recipe.tau

    def forward(self, views: Views, target_B: Tensor, epoch: Epoch) -> dict[str, Tensor]:
        """Parts of the loss by name; the distillation before its weight."""
        x_BTCHW, guidance_BTHW = views[self.modality]
        if self.row.shuffled_maps:
            guidance_BTHW = shuffled_maps(guidance_BTHW)
        if not isinstance(self.net, UnimodalNet):
            scores_BK = self.net(x_BTCHW, guidance_BTHW)
            return {"ce": F.cross_entropy(scores_BK, target_B, label_smoothing=self.recipe.smoothing)}
        logits, temporal = self.net(x_BTCHW, guidance_BTHW, epoch.temperature)
        parts = {"ce": multi_branch_loss(logits, target_B, self.recipe.smoothing, self.row.branch_losses)}
        if self.row.distillation:
            parts["distill"] = distillation_of(temporal, self.tau, self.recipe.reduction)
        return parts


class FusionTask(nn.Module):
    """The loss of a fusion."""

    def __init__(self, net: CAPF | ConcatFusion, recipe: Recipe) -> None:
        super().__init__()
        self.net, self.recipe = net, recipe

    def forward(self, views: Views, target_B: Tensor, epoch: Epoch) -> dict[str, Tensor]:
        """Parts of the loss by name."""
        rgb, depth = views["rgb"], views["depth"]
        out = self.net(rgb.x_BTCHW, depth.x_BTCHW, rgb.guidance_BTHW, depth.guidance_BTHW)
        return fusion_loss(out, target_B, self.recipe.smoothing, self.recipe.tau, self.recipe.reduction)


def unimodal_epochs(pretrain: Pretrain, row: Row) -> Callable[[int], Epoch]:
    """Temperature and distillation weight of each epoch."""
    recipe, sharp = pretrain.recipe, pretrain.sharpness
    schedule = SharpnessSchedule(recipe.epochs, sharp.start, sharp.end, sharp.ramp)

    def at(epoch: int) -> Epoch:
        temperature = schedule(epoch) if row.sharpness else 1.0
        return Epoch(temperature, distillation_weight(epoch, recipe.warmup))

    return at


def fusion_epochs(epoch: int) -> Epoch:
    """A fusion has neither temperature nor a weight that changes."""
    return Epoch(1.0, 1.0)


def new_optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Of all parameters, decay on everything (card, "Unimodal loss")."""
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(net.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        net.parameters(), recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )


def total_steps(recipe: Recipe, count: int) -> int:
    """Steps of a training on `count` clips; an incomplete last batch is left out."""
    return recipe.epochs * (count // recipe.batch)


def fit(
    task: UnimodalTask | FusionTask,
    clips: Clips,
    ids_N: Tensor,
    label_N: Tensor,
    recipe: Recipe,
    at: Callable[[int], Epoch],
    seed: int,
    log: RunLog,
    checkpoint: Checkpoint,
) -> History:
    """Train the task's network in place on the clips `ids_N`, whose targets are `label_N[ids_N]`.

    Returns:
        Mean loss parts, learning rate and share of time spent waiting for data, by epoch. (The last is logged, not
        returned: a time must not be in an output.)
    """
    device = next(task.parameters()).device
    optimizer = new_optimizer(task.net, recipe)
    per_epoch, start, history = len(ids_N) // recipe.batch, 0, []
    if saved := checkpoint.load():
        task.net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        start, history = int(saved["epoch"]), list(saved["history"])
    forward = parallel(task, device)
    rank, processes = process_share()
    saved_at = time.monotonic()
    for epoch in range(start, recipe.epochs):
        if time.monotonic() - saved_at >= CHECKPOINT_SECONDS:
            state = {"net": task.net.state_dict(), "optimizer": optimizer.state_dict()}
            checkpoint.save({**state, "epoch": epoch, "history": history})
            saved_at = time.monotonic()
        rate = learning_rate(
            epoch, recipe.epochs, recipe.lr, recipe.min_lr, recipe.warmup, recipe.official_warmup
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        order_N = ids_N[torch.randperm(len(ids_N), generator=draws(seed, epoch))]
        steps = [
            order_N[n * recipe.batch : (n + 1) * recipe.batch][rank::processes] for n in range(per_epoch)
        ]
        first = recipe.epochs + epoch * per_epoch
        asks = [(ids_B, draws(seed, first + n)) for n, ids_B in enumerate(steps)]
        task.train()
        sums: dict[str, float] = {}
        waited, began = 0.0, time.monotonic()
        batches = clips.batches(asks)
        for number, ids_B in enumerate(steps):
            asked = time.monotonic()
            views = next(batches)
            waited += time.monotonic() - asked
            torch.manual_seed(seed * 1_000_003 + first + number)  # of dropout and frame picks
            parts = forward(views, label_N[ids_B].to(device), at(epoch))
            weights = {"distill": at(epoch).distillation}
            loss = torch.stack([weights.get(name, 1.0) * part for name, part in parts.items()]).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(task.net.parameters(), recipe.clip)
            optimizer.step()
            for name, part in parts.items():
                sums[name] = sums.get(name, 0.0) + part.item() / per_epoch
            tick()
        spent = max(time.monotonic() - began, 1e-9)
        log.metrics({**sums, "lr": rate, "data_wait_share": waited / spent}, epoch)
        history.append({**sums, "lr": rate})
    task.eval()
    return history


@torch.inference_mode()
def predict(
    net: nn.Module, clips: Clips, score: Callable[[nn.Module, Views], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Scores of every clip of a split, in its order, by name, on the CPU."""
    net.eval()
    batches = torch.arange(len(clips.label_N)).split(EVALUATION_BATCH)
    found = [score(net, views) for views in clips.batches((ids_B, None) for ids_B in batches)]
    return {name: torch.cat([part[name].cpu() for part in found]) for name in found[0]}
