"""Training of a network while its channels are explored, for any task: the slim copy is trained, the full network explored.

The classification pipeline has a loop of its own (`training.py`); this one leaves the loss, the optimizer and the
learning rate to the task.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.chex.method.channel_groups import ChannelGroup
from stages.chex.method.compact import CompactModel
from stages.chex.method.explorer import ChannelExplorer
from stages.chex.rows import Schedule
from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, parallel
from stages.common.stage.progress import tick
from stages.common.stage.tracking import RunLog

LOG_STEPS = 20  # the training loss is logged this often
CHECKPOINT_SECONDS = 60.0

Loss = Callable[[nn.Module], Tensor]  # of one batch, from the network


@dataclass(frozen=True)
class Task:
    """What a step of training is.

    Attributes:
        optimizer: makes the optimizer of a network, slim or full, at the peak learning rate.
        lr: learning rate at a step, as a fraction of the peak.
        losses: losses of the training batches from a given step on, without end.
        clip: limit of the gradient's norm, or None.
        bfloat16: whether forward passes run in bfloat16.
    """

    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    lr: Callable[[int], float]
    losses: Callable[[int], Iterator[Loss]]
    clip: float | None = None
    bfloat16: bool = False


class SubModel:
    """The slim copy that is trained until channels are chosen anew, with its optimizer.

    What the optimizer knows of a channel (momentum, say) waits with its weights when it is pruned, and returns with them.

    Attributes:
        module: the slim copy. network: the same as the training step calls it (gradients averaged over processes).
        optimizer: of the slim copy.
        moments: state of the optimizer in the full network's shapes, kind -> parameter -> tensor.
        counters: the rest of its state, which all parameters share (Adam's count of steps).
    """

    def __init__(
        self, model: nn.Module, groups: list[ChannelGroup], explorer: ChannelExplorer, task: Task, device: torch.device,
        moments: dict[str, dict[str, Tensor]], counters: dict[str, Tensor],
    ) -> None:  # fmt: skip
        self._model, self._groups, self._explorer = model, groups, explorer
        self._task, self._device = task, device
        self.moments, self.counters = moments, counters
        self.take()

    def take(self) -> None:
        """Copy what the masks leave of the full network and of the moments."""
        self._compact = CompactModel(self._model, self._groups, self._explorer.masks)
        self.module = self._compact.module.train()
        self.network = parallel(self.module, self._device)
        self.optimizer = self._task.optimizer(self.module)
        for kind, full in self.moments.items():
            narrow = self._compact.slice_state(full)
            for name, parameter in self.module.named_parameters():
                if name in narrow:
                    self.optimizer.state[parameter][kind] = narrow[name]
                    for counter, value in self.counters.items():
                        self.optimizer.state[parameter][counter] = value.clone()

    def put_back(self) -> None:
        """Write the slim copy and its moments into the full network and the full moments."""
        self._compact.scatter_()
        states = [(name, self.optimizer.state.get(p, {})) for name, p in self.module.named_parameters()]
        for kind in sorted({kind for _, state in states for kind in state}):
            values = {name: state[kind] for name, state in states if kind in state}
            some = next(iter(values.values()))
            if not some.dim():
                self.counters[kind] = some.clone()
                continue
            full = self._compact.scatter_state(values)
            there = self._compact.scatter_state({name: torch.ones_like(v) for name, v in values.items()})
            before = self.moments.get(kind, full)
            self.moments[kind] = {
                name: torch.where(there[name].bool(), value, before.get(name, value))
                for name, value in full.items()
            }


def fit(
    model: nn.Module,
    groups: list[ChannelGroup],
    explorer: ChannelExplorer,
    task: Task,
    schedule: Schedule,
    device: torch.device,
    log: RunLog,
    checkpoint: Checkpoint,
) -> list[dict[str, Any]]:
    """Train `model` in place.

    Returns:
        The active channels of every group at the start and after each choice of channels.
    """
    history = [_widths(0, explorer)]
    start: int = 0
    moments: dict[str, dict[str, Tensor]] = {}
    counters: dict[str, Tensor] = {}
    if saved := checkpoint.load():
        start, history, moments, counters = (saved[key] for key in ("step", "history", "moments", "counters"))
        moments = {kind: {k: v.to(device) for k, v in state.items()} for kind, state in moments.items()}
        model.load_state_dict(saved["model"])
        explorer.load_state_dict(saved["explorer"])
    sub = SubModel(model, groups, explorer, task, device, moments, counters)
    peaks = [group["lr"] for group in sub.optimizer.param_groups]
    autocast = torch.autocast(device.type, torch.bfloat16) if task.bfloat16 else contextlib.nullcontext()
    saved_at = time.monotonic()
    tick(start)
    losses = task.losses(start)
    for step in range(start, schedule.steps):
        tick()
        if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            sub.put_back()
            if is_main():
                checkpoint.save(
                    {
                        "step": step, "history": history, "moments": sub.moments, "counters": sub.counters,
                        "model": model.state_dict(), "explorer": explorer.state_dict(),
                    }
                )  # fmt: skip
            saved_at = time.monotonic()
        if step in schedule.updates or step == schedule.final_update:
            sub.put_back()
            update = explorer.step(step) if step in schedule.updates else explorer.finish()
            if update is not None:
                history.append(_widths(step, explorer))
                log.metrics({"active channels": sum(history[-1]["active"].values())}, step)
            sub.take()
        for group, peak in zip(sub.optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * task.lr(step)
        with autocast:
            loss = next(losses)(sub.network)
        sub.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if task.clip is not None:
            torch.nn.utils.clip_grad_norm_(sub.module.parameters(), task.clip)
        sub.optimizer.step()
        if step % LOG_STEPS == 0:
            log.metrics({"train loss": loss.item(), "learning rate": group["lr"]}, step)
    sub.put_back()
    return history


def _widths(step: int, explorer: ChannelExplorer) -> dict[str, Any]:
    return {"step": step, "active": {name: int(mask.sum()) for name, mask in explorer.masks.items()}}
