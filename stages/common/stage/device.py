"""One stage on a CPU, a GPU, or several GPUs under torchrun."""

import os

import torch
from torch import nn


def start_device() -> torch.device:
    """The device of this process; joins the process group when torchrun has started several."""
    if "LOCAL_RANK" not in os.environ:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def process_share() -> tuple[int, int]:
    """Rank of this process and how many there are: it takes every so many-th part of the work."""
    if not torch.distributed.is_initialized():  # torchrun says it, also where no group has been needed
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def is_main() -> bool:
    """Whether this process is the one that writes and reports."""
    return process_share()[0] == 0


def parallel(module: nn.Module, device: torch.device) -> nn.Module:
    """`module` as the training step calls it: its gradients are averaged over processes when there are several."""
    if not torch.distributed.is_initialized():
        return module
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(module, device_ids=ids)
