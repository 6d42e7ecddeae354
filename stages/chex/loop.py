"""The one training loop of this paper: every row of its tables, dense or pruned, is trained by `fit`.

Between updates only the physically slim copy of the network is trained (`CompactModel`); at an update its values go back
into the full network, the explorer chooses new channels there, and a new slim copy is taken. Loss, optimizer and learning
rate are the task's.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stages.chex.method.compact import CompactModel
from stages.chex.method.explorer import ChannelExplorer
from stages.chex.rows import Schedule
from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, parallel
from stages.common.stage.progress import tick
from stages.common.stage.tracking import RunLog

LOG_STEPS = 20  # the training loss is logged this often
MONITORED = 2  # places at which the task's monitor is asked, the start and the end left out
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
        monitor: numbers of a network in eval mode to log over training.
    """

    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    lr: Callable[[int], float]
    losses: Callable[[int], Iterator[Loss]]
    clip: float | None = None
    bfloat16: bool = False
    monitor: Callable[[nn.Module], dict[str, float]] | None = None


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
        self, model: nn.Module, explorer: ChannelExplorer, task: Task, device: torch.device,
        moments: dict[str, dict[str, Tensor]], counters: dict[str, Tensor],
    ) -> None:  # fmt: skip
        self._model, self._explorer, self._task, self._device = model, explorer, task, device
        self.moments, self.counters = moments, counters
        self.take()

    def take(self) -> None:
        """Copy what the masks leave of the full network and of the moments."""
        self._compact = CompactModel(self._model, self._explorer.groups, self._explorer.masks)
        # pixels before channels is the faster order of 2-D convolutions; other layers have none
        self.module = self._compact.module.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.network = parallel(self.module, self._device)
        self.optimizer = self._task.optimizer(self.module)
        for kind, full in self.moments.items():
            narrow = self._compact.slice_state(full)
            for name, parameter in self.module.named_parameters():
                if name in narrow:
                    # in the parameter's order of memory: fused optimizers go through both as they lie there
                    self.optimizer.state[parameter][kind] = torch.empty_like(parameter).copy_(narrow[name])
                    for counter, value in self.counters.items():
                        self.optimizer.state[parameter][counter] = value.clone()

    def put_back(self) -> None:
        """Write the slim copy and its moments into the full network and the full moments."""
        self._compact.scatter_()
        states = [(name, self.optimizer.state.get(p, {})) for name, p in self.module.named_parameters()]
        for kind in sorted(
            {kind for _, state in states for kind, value in state.items() if value is not None}
        ):
            values = {name: state[kind] for name, state in states if kind in state}
            some = next(iter(values.values()))
            if some.dim():
                known = self.moments.get(kind, {})
                self.moments[kind] = known | self._compact.scatter_state(values, known)
            else:
                self.counters[kind] = some.clone()


def fit(
    model: nn.Module,
    explorer: ChannelExplorer,
    task: Task,
    schedule: Schedule,
    device: torch.device,
    log: RunLog,
    checkpoint: Checkpoint,
) -> list[dict[str, Any]]:
    """Train `model` in place within the masks that `explorer` chooses on the way; resumes from `checkpoint`.

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
    sub = SubModel(model, explorer, task, device, moments, counters)
    peaks = [group["lr"] for group in sub.optimizer.param_groups]
    autocast = torch.autocast(device.type, torch.bfloat16) if task.bfloat16 else contextlib.nullcontext()
    monitored = {schedule.steps * place // (MONITORED + 1) for place in range(1, MONITORED + 1)}
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
        if task.monitor and step in monitored:
            log.metrics(task.monitor(sub.module.eval()), step)
            sub.module.train()
    sub.put_back()
    return history


def _widths(step: int, explorer: ChannelExplorer) -> dict[str, Any]:
    return {"step": step, "active": {name: int(mask.sum()) for name, mask in explorer.masks.items()}}
