"""adam-cifar10: residual networks on CIFAR-10, to stand beside the AdaBound repository's learning curves (claim 9).

Reads `data/adam/<scale>/cifar10.safetensors`. Writes `runs/adam/<scale>/cifar10/`, table T8: final test and training
accuracy, and both after every epoch as curves. At scales without `cifar10` both files are empty. A training that was killed
goes on from its checkpoint.
"""

import contextlib
import time
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from stages.adam.lab import Sheet, write_experiment
from stages.adam.method.adabound import AdaBound
from stages.adam.method.adam_family import AdamFamily
from stages.adam.method.schedules import Stagewise
from stages.adam.params import AdamParams, Cifar10, Cifar10Method
from stages.common.augment import crop_flip
from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import is_main, parallel, process_share, start_device
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, run
from stages.common.stage.tracking import RunLog

DATA = "CIFAR-10"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of its training set
DROP = 0.75  # of the epochs, after which lr is a tenth
EVALUATION_BATCH = 1000
CHECKPOINT_SECONDS = 60.0
Job = tuple[Cifar10Method, int]


def main() -> None:
    """Train every method and seed."""
    params = load_params(AdamParams, "adam")
    prepared = Path("data/adam") / params.scale
    with Stage("adam-cifar10", params, [prepared]) as stage:
        options = params.cifar10
        jobs: list[Job] = [(m, s) for m in options.methods for s in options.seeds] if options else []
        with progress("adam-cifar10", len(jobs)) as bar:
            work = partial(train, params=params, prepared=prepared, folder=stage.work)
            for (method, seed), _ in run_jobs(work, jobs) if jobs else ():
                bar.advance(note=f"{method} seed {seed}")
        if is_main():
            write_experiment("cifar10", params, [_name(job) for job in jobs], stage.work)


def _name(job: Job) -> str:
    return "{}-{}".format(*job)


def build_network(name: str) -> nn.Module:
    """torchvision's network with the small stem that CIFAR-10 needs: one 3x3 of stride 1 and no pooling."""
    from torchvision import models

    network = models.get_model(name, num_classes=10)
    network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    network.maxpool = nn.Identity()
    return network


def build_optimizer(method: Cifar10Method, network: nn.Module, drop_step: int) -> torch.optim.Optimizer:
    """Each rival as its published curve was made (published.csv); weight decay is added to the gradients in `train`.

    `family-increasing` is this paper's advice: beta1 goes from .9 to .99 when the step size falls.
    """
    params = network.parameters()
    match method:
        case "sgd":
            return torch.optim.SGD(params, lr=0.1, momentum=0.9)
        case "adagrad":
            return torch.optim.Adagrad(params, lr=0.01)
        case "adam" | "amsgrad":
            return torch.optim.Adam(params, lr=1e-3, betas=(0.99, 0.999), amsgrad=method == "amsgrad")
        case "adabound" | "amsbound":
            return AdaBound(params, lr=1e-3, final_lr=0.1, gamma=1e-3, amsbound=method == "amsbound")
        case "family-increasing":
            return AdamFamily(params, lr=1e-3, beta1=Stagewise(((0, 0.9), (drop_step, 0.99))))


def train(job: Job, params: AdamParams, prepared: Path, folder: Path) -> None:
    """Train one network; leaves its tables in `folder`."""
    (method, seed), options = job, params.cifar10
    assert options is not None
    if (folder / f"{_name(job)}.parquet").exists():
        return
    device = start_device()
    images = {name: tensor.to(device) for name, tensor in load_file(prepared / "cifar10.safetensors").items()}
    torch.manual_seed(seed)
    network = build_network(options.net).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    per_epoch = len(images["train_x"]) // options.batch
    drop = int(DROP * options.epochs)
    optimizer = build_optimizer(method, network, drop * per_epoch)
    base_lr = optimizer.param_groups[0]["lr"]
    stepped = parallel(network, device)
    checkpoint, saved_at = Checkpoint(folder / f"{_name(job)}.ckpt"), time.monotonic()
    first, history = 0, []
    if saved := checkpoint.load():
        first, history = saved["epoch"], saved["history"]
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
    sheet = Sheet(params, "cifar10", options, [seed])
    with RunLog(
        "adam", f"cifar10 {method} seed {seed}", sheet.run_id(method), params={"method": method, "seed": seed,
        **options.model_dump()}, tags={"scale": params.scale, "experiment": "cifar10", "method": method},
    ) as log:  # fmt: skip
        for epoch in range(first, options.epochs):
            for group in optimizer.param_groups:
                group["lr"] = base_lr * (0.1 if epoch >= drop else 1.0)
            right = train_epoch(stepped, optimizer, images, options, seed, epoch)
            history.append([100 * right, 100 * accuracy(network, images["test_x"], images["test_y"])])
            log.metrics({"train accuracy": history[-1][0], "test accuracy": history[-1][1]}, epoch + 1)
            if is_main() and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
                checkpoint.save({"epoch": epoch + 1, "history": history, **state})
                saved_at = time.monotonic()
    if not is_main():
        return
    setting = f"{options.net}, {options.epochs} epochs"
    for i, metric in enumerate(("train_accuracy", "test_accuracy")):
        values = [torch.tensor([entry[i]]) for entry in history]
        sheet.add("T8", method, setting, metric, values[-1], "%", DATA)
        sheet.curve(method, f"{setting}, seed {seed}", metric, dict(enumerate(values, start=1)))
    sheet.save(_name(job), folder)


def train_epoch(
    network: nn.Module, optimizer: torch.optim.Optimizer, images: dict[str, Tensor], options: Cifar10, seed: int,
    epoch: int,
) -> float:  # fmt: skip
    """One epoch over whole batches, in an order that depends on the seed and the epoch; returns the share right."""
    network.train()
    rank, world = process_share()
    x_NCHW, y_N = images["train_x"], images["train_y"]
    params = list(network.parameters())
    order_N = torch.randperm(len(x_NCHW), generator=Generator().manual_seed(seed * 1_000_003 + epoch))
    generator = Generator().manual_seed((seed * 1_000_003 + epoch) * world + rank)
    whole = len(x_NCHW) // options.batch * options.batch
    right = torch.zeros((), device=x_NCHW.device)
    for start in range(0, whole, options.batch):
        rows_B = order_N[start : start + options.batch][rank::world].to(x_NCHW.device)
        x_BCHW = crop_flip(as_float(x_NCHW[rows_B]), generator).to(memory_format=torch.channels_last)
        with _autocast(options, x_BCHW.device):
            logits_BK = network(x_BCHW)
            loss = cross_entropy(logits_BK, y_N[rows_B])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [p.grad for p in params if p.grad is not None]
        torch._foreach_add_(gradients, [p.detach() for p in params], alpha=options.weight_decay)
        optimizer.step()
        right += (logits_BK.argmax(1) == y_N[rows_B]).sum()
    return float(right) * world / whole


def _autocast(options: Cifar10, device: torch.device) -> contextlib.AbstractContextManager[object]:
    if options.precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def as_float(x_BCHW: Tensor) -> Tensor:
    """uint8 images, scaled and normalised."""
    mean, std = (torch.tensor(values, device=x_BCHW.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (x_BCHW.float() / 255 - mean) / std


@torch.no_grad()
def accuracy(network: nn.Module, x_NCHW: Tensor, y_N: Tensor) -> float:
    """Share of right answers."""
    network.eval()
    right = 0
    for start in range(0, len(x_NCHW), EVALUATION_BATCH):
        rows = slice(start, start + EVALUATION_BATCH)
        x_BCHW = as_float(x_NCHW[rows]).to(memory_format=torch.channels_last)
        right += int((network(x_BCHW).argmax(1) == y_N[rows]).sum())
    return right / len(x_NCHW)


if __name__ == "__main__":
    run(main)
