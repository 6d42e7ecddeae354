"""The training loops of this paper: a backbone on the source (`pretrain`), two heads on both (`finetune`).

Both are deterministic in (seed, step), so that a checkpoint resumes to the same bytes.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, parallel
from stages.common.stage.tracking import RunLog
from stages.uot.cells import Row
from stages.uot.data import Images
from stages.uot.method.dual_head import DualHeadModel, consistency_loss, joint_loss, l2_sp, sgd
from stages.uot.method.learning_rate import step_factor
from stages.uot.method.metrics import top_k
from stages.uot.params import Finetune, Pretrain, Start

LOG_STEPS = 50  # training loss is logged this often
EVALUATIONS = 5  # test accuracy over training is taken this many times, the end included
CHECKPOINT_SECONDS = 60.0
PRETRAIN_DROP = 0.6  # of pre-training, where its rate falls to a tenth (card, "Data", quick)
SOURCE_SEED = 500_009  # the source stream's shuffles are independent of the target's


@dataclass
class Plan:
    """What one fine-tuning trains on, and for how many steps."""

    target: Images
    test: Images
    source: Images | None
    steps: int
    weight: float


def pretrain(
    model: nn.Module,
    images: Images,
    label_map: Tensor,
    recipe: Pretrain,
    seed: int,
    log: RunLog,
    checkpoint: Checkpoint,
) -> None:
    """Train a classifier in place on source images whose class c counts as `label_map[c]`."""
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        foreach=True,
    )
    steps = recipe.epochs * (len(images) // recipe.batch)
    start = _resume(checkpoint, model, optimizer)
    saved_at = time.monotonic()
    model.train()
    network = parallel(model, images.device)
    label_map = label_map.to(images.device)
    for step, (x, y_B) in enumerate(images.stream(recipe.batch, seed, start, steps), start):
        saved_at = _save(checkpoint, model, optimizer, step, saved_at)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * (0.1 if step >= PRETRAIN_DROP * steps else 1.0)
        loss = F.cross_entropy(network(x), label_map[y_B])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % LOG_STEPS == 0:
            log.metrics({"train loss": loss.item()}, step)


def finetune(
    model: DualHeadModel,
    row: Row,
    plan: Plan,
    start: Start,
    recipe: Finetune,
    seed: int,
    log: RunLog,
    checkpoint: Checkpoint,
) -> list[float]:
    """Fine-tune `model` in place.

    Returns the test accuracy in percent at `EVALUATIONS` points, the last one at the end.
    """
    device = plan.target.device
    optimizer = sgd(model, start.lr, start.weight_decay, recipe.momentum, recipe.head_ratio)
    anchor = {name: parameter.detach().clone() for name, parameter in model.backbone.named_parameters()}
    history: list[float] = []
    first = _resume(checkpoint, model, optimizer, history)
    evaluated = {plan.steps * part // EVALUATIONS for part in range(1, EVALUATIONS)}
    target = plan.target.stream(recipe.batch, seed, first, plan.steps)
    source = _source_batches(row, plan, recipe.batch, seed, first)
    autocast = (
        torch.autocast(device.type, torch.bfloat16)
        if recipe.precision == "bfloat16"
        else contextlib.nullcontext()
    )
    saved_at = time.monotonic()
    model.train()
    network = parallel(model, device)
    for step, (x_B, y_B) in enumerate(target, first):
        saved_at = _save(checkpoint, model, optimizer, step, saved_at, history)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * step_factor(step, plan.steps)
        source_x, source_y = next(source)
        with autocast:
            up, down = network(torch.cat([x_B, *source_x]))
            if row.source == "unlabelled":
                weak, strong = down[len(y_B) :].chunk(2)
                target_loss = F.cross_entropy(down[: len(y_B)], y_B)
                source_loss = consistency_loss(weak, strong, recipe.temperature, recipe.threshold)
                loss = target_loss + plan.weight * source_loss + 0 * up.sum()  # the source head takes no part
            else:
                loss, target_loss, source_loss = joint_loss(up, down, y_B, source_y, plan.weight)
            if row.l2_sp:
                loss = loss + l2_sp(model.backbone, anchor, recipe.l2_sp)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % LOG_STEPS == 0:
            log.metrics({"target loss": target_loss.item(), "source loss": source_loss.item()}, step)
        if step in evaluated:
            history.append(accuracy(model, plan.test))
            log.metrics({"test top1 in training": history[-1]}, step)
    return [*history, accuracy(model, plan.test)]


def _source_batches(
    row: Row, plan: Plan, batch: int, seed: int, first: int
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Images and labels that a step adds to the target's.

    None, labelled ones, or a weak and a strong view without labels.
    """
    nothing = torch.empty(0, dtype=torch.long, device=plan.target.device)
    if plan.source is None:
        while True:
            yield [], nothing
    shuffle = seed + SOURCE_SEED
    weak = plan.source.stream(batch, shuffle, first, plan.steps)
    if row.source == "labelled":
        for x_B, y_B in weak:
            yield [x_B], y_B
    else:
        strong = plan.source.stream(batch, shuffle, first, plan.steps, "strong")
        for (weak_B, _), (strong_B, _) in zip(weak, strong, strict=True):
            yield [weak_B, strong_B], nothing


@torch.no_grad()
def target_logits(model: DualHeadModel, images: Images) -> tuple[Tensor, Tensor]:
    """Logits of the target head `[N, T]` and labels `[N]` of every image, in eval mode.

    The mode is put back.
    """
    training = model.training
    model.eval()
    batches = [(model.predict(x).float().cpu(), y.cpu()) for x, y in images.once()]
    model.train(training)
    return torch.cat([logits for logits, _ in batches]), torch.cat([labels for _, labels in batches])


def accuracy(model: DualHeadModel, images: Images) -> float:
    """Top-1 of the target head, in percent."""
    return top_k(*target_logits(model, images))


def _resume(
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: list[float] | None = None,
) -> int:
    """Put back what was saved; returns the step to go on with."""
    saved = checkpoint.load()
    if saved is None:
        return 0
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    if history is not None:
        history += saved["history"]
    return int(saved["step"])


def _save(
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    saved_at: float,
    history: list[float] | None = None,
) -> float:
    """Save the state before `step` when the last time is long ago; returns when that was."""
    if time.monotonic() - saved_at < CHECKPOINT_SECONDS:
        return saved_at
    if is_main():
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        checkpoint.save({**state, "step": step, "history": history or []})
    return time.monotonic()
