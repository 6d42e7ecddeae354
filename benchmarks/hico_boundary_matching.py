"""BMN's boundary-matching layer: weights and then a sparse product, against the published dense one and a 3-D convolution.

Forward and backward, float32, one video, C = 128 channels to 512, N = 32 points, every duration up to T places; CPU time of
one thread, the median of interleaved runs. Memory is the growth of the resident high-water mark.

    python -m benchmarks.hico_boundary_matching [--places 25 50 100] [--runs 3]
"""

import argparse
import ctypes
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.elsa_op import resident
from stages.hico.localisation.boundary_matching import BoundaryMatching

CHANNELS, POINTS = 128, 32


def published(layer: BoundaryMatching, dense: Tensor, x_BCT: Tensor) -> Tensor:
    """All points of all proposals `[B, C, N, D, T]`, then a convolution over N."""
    places, durations = layer.places, layer.durations
    seen_CNDT = (x_BCT[0] @ dense).view(CHANNELS, POINTS, durations, places)
    return F.conv3d(seen_CNDT[None], layer.weight_OCN[..., None, None], layer.bias_O)[:, :, 0]


def peak(form: Callable[[], Tensor]) -> float:
    """MiB that one run adds to this process at most."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = resident("VmRSS")
    form().square().sum().backward()
    return (resident("VmHWM") - before) / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--places", type=int, nargs="+", default=[25, 50, 100])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("   T   form              ms   times   peak MiB   times   largest difference")
    for places in options.places:
        layer = BoundaryMatching(CHANNELS, 4 * CHANNELS, places, places, POINTS)
        weights_DTNT = layer.sampling.to_dense().view(places, places, POINTS, places)
        dense = weights_DTNT.permute(3, 2, 0, 1).reshape(places, -1).contiguous()
        x_BCT = torch.randn(1, CHANNELS, places, requires_grad=True)
        forms: dict[str, Callable[[], Tensor]] = {
            "sparse": partial(layer, x_BCT),
            "published": partial(published, layer, dense, x_BCT),
        }
        gap = (forms["sparse"]() - forms["published"]()).abs().max().item()
        seconds: dict[str, list[float]] = {name: [] for name in forms}
        for run in range(options.runs + 1):
            for name, form in forms.items():
                start = time.process_time()
                form().square().sum().backward()
                if run:  # the first one warms up
                    seconds[name].append(time.process_time() - start)
        times = {name: median(values) for name, values in seconds.items()}
        grown = {name: peak(form) for name, form in forms.items()}
        for name in forms:
            print(
                f"{places:4d}   {name:11s} {1e3 * times[name]:8.1f} {times[name] / times['sparse']:7.1f} "
                f"{grown[name]:10.1f} {grown[name] / grown['sparse']:7.1f}   {gap:.0e}"
            )


if __name__ == "__main__":
    main()
