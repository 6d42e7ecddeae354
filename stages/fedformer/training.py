"""The one training loop of this paper, for every model that has something to train (card, "Training and
evaluation").

Adam on the squared error of the horizon, learning rate halved every epoch from the third on, early stopping
on the validation error, the best epoch's weights at the end.
"""

import time
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, parallel, process_share
from stages.fedformer.data import Series, batch, windows_of
from stages.fedformer.errors import window_errors
from stages.fedformer.params import Recipe

LOG_STEPS = 20  # the training loss is logged this often
CHECKPOINT_SECONDS = 60.0
PRIME = 1_000_003  # keeps the streams of seeds apart


class Log(Protocol):
    """Takes numbers at a step; `RunLog.metrics` is one."""

    def __call__(self, values: dict[str, float], step: int) -> None: ...  # noqa: D102


def adam(model: nn.Module, lr: float, spectral: float) -> torch.optim.Adam:
    """Adam whose complex weights learn at `lr * spectral`; what is frozen is left out."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    is_spectral = {name for name, _ in named if name.rpartition(".")[2] in ("weight_HMIO2", "weight_MIO2")}
    groups = [
        {"params": [p for name, p in named if name not in is_spectral], "factor": 1.0},
        {"params": [p for name, p in named if name in is_spectral], "factor": spectral},
    ]
    return torch.optim.Adam([group for group in groups if group["params"]], lr=lr, fused=True)


def learning_rate(base: float, epoch: int) -> float:
    """Of epoch `epoch`, from 0: the first two at `base`, then halved each."""
    return base * 0.5 ** max(0, epoch - 1)


def epoch_starts(series: Series, recipe: Recipe, horizon: int, seed: int, epoch: int) -> Tensor:
    """Shuffled starts of an epoch's training windows, `[steps, batch]`; what fills no batch is left out."""
    starts = windows_of(series.borders, "train", recipe.seq_len, horizon)
    generator = torch.Generator().manual_seed(seed * PRIME + epoch)
    order = torch.randperm(len(starts), generator=generator)[: recipe.train_windows]
    steps = len(order) // recipe.batch
    return (order[: steps * recipe.batch] + starts[0]).view(steps, recipe.batch)


def fit(
    model: nn.Module, series: Series, recipe: Recipe, horizon: int, lr: float, seed: int, log: Log,
    checkpoint: Checkpoint,
) -> list[dict[str, float]]:  # fmt: skip
    """Train `model` in place; resumes from `checkpoint`. Returns training and validation error per epoch."""
    device = series.values_TC.device
    optimizer = adam(model, lr, recipe.spectral_lr)
    network = parallel(model, device)
    rank, world = process_share()
    lengths = (recipe.seq_len, recipe.label_len, horizon)
    state: dict[str, Any] = {"epoch": 0, "step": 0, "total": 0.0, "history": [], "best": None, "waited": 0}
    if saved := checkpoint.load():
        model.load_state_dict(saved.pop("model"))
        optimizer.load_state_dict(saved.pop("optimizer"))
        state = saved
    saved_at = time.monotonic()
    while state["epoch"] < recipe.epochs and state["waited"] < recipe.patience:
        epoch = state["epoch"]
        starts = epoch_starts(series, recipe, horizon, seed, epoch)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(lr, epoch) * group["factor"]
        model.train()
        for step in range(state["step"], len(starts)):
            if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                if is_main():
                    state |= {"step": step}
                    checkpoint.save(
                        state | {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    )
                saved_at = time.monotonic()
            # dropout's masks and Informer's samples belong to the step, so that a resumed run draws the same
            torch.manual_seed((seed * PRIME + epoch) * PRIME + step * world + rank)
            inputs, truth_BOC = batch(series, starts[step].view(world, -1)[rank], *lengths)
            loss = nn.functional.mse_loss(network(*inputs), truth_BOC)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            value = loss.item()
            state["total"] += value
            if step % LOG_STEPS == 0:
                log({"train loss": value}, epoch * len(starts) + step)
        squared, _ = window_errors(model, series, "val", recipe, horizon)
        errors = {"train": state["total"] / max(1, len(starts)), "val": float(squared.mean())}
        log({f"{name} mse": value for name, value in errors.items()}, epoch + 1)
        state["history"].append(errors)
        better = state["best"] is None or errors["val"] <= min(e["val"] for e in state["history"])
        if better:
            state["best"] = {name: value.clone() for name, value in model.state_dict().items()}
        state |= {"waited": 0 if better else state["waited"] + 1, "epoch": epoch + 1, "step": 0, "total": 0.0}
    model.load_state_dict(state["best"])
    return state["history"]
