"""Measured latency of a slim network against the dense one, in the same process, interleaved (card,
"Metrics")."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn


@dataclass(frozen=True)
class Latency:
    """Median seconds per forward pass of both networks and how they were measured."""

    dense_s: float
    slim_s: float
    ratio: float  # dense / slim: above 1, the slim network is faster
    shape: tuple[int, ...]
    threads: int
    repeats: int


def latency_ratio(
    dense: nn.Module, slim: nn.Module, shape: Sequence[int], repeats: int = 30, threads: int = 1
) -> Latency:
    """Time both networks in turn on the same input, so that whatever else the machine does hits both.

    Args:
        dense, slim: on one device; run in eval mode, left in it.
        shape: input shape with batch, [N, C, H, W].
        repeats: runs of each; the median is taken. Three more of each warm up.
        threads: CPU threads, restored afterwards.
    """
    device = next(dense.parameters()).device
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device)
    seconds: tuple[list[float], list[float]] = ([], [])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            for run in range(-3, repeats):
                for model, times in zip((dense.eval(), slim.eval()), seconds, strict=True):
                    start = time.perf_counter()
                    model(x)
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                    if run >= 0:
                        times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    dense_s, slim_s = median(seconds[0]), median(seconds[1])
    return Latency(dense_s, slim_s, dense_s / slim_s, tuple(shape), threads, repeats)
