"""Guidance maps of all windows at once against the released per-frame formulation.

The per-frame side does what the released loader does for every clip: for each window a loop over its frames, then relu,
scaling, greyscale, threshold, erosion and dilation of one map. `sums only` compares the pooling, without the rest; the
prefix sums are timed beside it.

    python -m benchmarks.motionrgbd_guidance [--threads 1] [--runs 3] [--window 10] [--frames 64] [--sides 32 112 224]
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.motionrgbd.method.guidance import LUMA, dilate, erode, rank_pool, rank_pool_guidance


def window_sum(frames: list[Tensor], window: int) -> Tensor:
    """One window, frame by frame."""
    total = torch.zeros(frames[0].shape)
    for place, frame in enumerate(frames, 1):
        total += frame * float(2 * place - window - 1)
    return total


def per_frame(x_TCHW: Tensor, window: int) -> Tensor:
    """Maps `[T, H, W]`, one after another."""
    frames, maps = list(x_TCHW), []
    for first in range(len(frames) - window + 1):
        pooled = F.relu(window_sum(frames[first : first + window], window))
        pooled -= pooled.min()
        pooled = pooled / (pooled.max() if pooled.max() != 0 else 1e-5)
        grey = sum(weight * channel for weight, channel in zip(LUMA, pooled, strict=True))
        assert isinstance(grey, Tensor)
        salient = torch.where(grey > grey.mean(), grey, torch.zeros_like(grey))
        salient = dilate(erode(salient[None, None], 2), 3)[0, 0]
        salient -= salient.min()
        salient = salient / (salient.max() if salient.max() != 0 else 1e-5)
        maps.append((grey + salient) * salient)
    return torch.cat([torch.zeros(window - 1, *x_TCHW.shape[2:]), torch.stack(maps)])


def per_frame_sums(x_TCHW: Tensor, window: int) -> Tensor:
    """The sums alone, `[S, C, H, W]`."""
    frames = list(x_TCHW)
    return torch.stack(
        [window_sum(frames[first : first + window], window) for first in range(len(frames) - window + 1)]
    )


def prefix_sums(x_TCHW: Tensor, window: int) -> Tensor:
    """The sums by differences of two prefix sums, in float64, `[S, C, H, W]`."""
    frames = len(x_TCHW)
    place_T111 = torch.arange(frames, dtype=torch.float64)[:, None, None, None]

    def sums(values_TCHW: Tensor) -> Tensor:
        total = F.pad(values_TCHW.cumsum(0), (0, 0, 0, 0, 0, 0, 1, 0))
        return total[window:] - total[:-window]

    x_TCHW = x_TCHW.double()
    first_S111 = place_T111[: frames - window + 1]
    return (2 * sums(place_T111 * x_TCHW) - (2 * first_S111 + window - 1) * sums(x_TCHW)).float()


def seconds(works: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Median seconds of each, interleaved, after one run that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for run in range(runs + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if run:
                taken[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--window", type=int, default=10)
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 112, 224])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.frames} frames, window {options.window}, {options.threads} thread(s); ms of one clip")
    for side in options.sides:
        pixels = torch.randint(0, 256, (1, options.frames, 3, side, side))
        x_BTCHW = (pixels.float() - 127.5) / 128
        found = seconds(
            {
                "maps": lambda x=x_BTCHW: rank_pool_guidance(x, options.window),
                "per-frame maps": lambda x=x_BTCHW: per_frame(x[0], options.window),
                "sums": lambda x=x_BTCHW: rank_pool(x, options.window),
                "per-frame sums": lambda x=x_BTCHW: per_frame_sums(x[0], options.window),
                "prefix sums": lambda x=x_BTCHW: prefix_sums(x[0], options.window),
            },
            options.runs,
        )
        ours, theirs = rank_pool_guidance(x_BTCHW, options.window)[0], per_frame(x_BTCHW[0], options.window)
        for part, name in (("whole maps", "maps"), ("sums only", "sums")):
            fast, slow = found[name], found[f"per-frame {name}"]
            print(
                f"  {side:4d} px  {part:11s} {1e3 * fast:9.1f}  per frame {1e3 * slow:9.1f}   x {slow / fast:.1f}"
            )
        print(f"  {side:4d} px  sums only, prefix sums {1e3 * found['prefix sums']:9.1f}")
        print(f"  {side:4d} px  largest difference {float((ours - theirs).abs().max()):.0e}")


if __name__ == "__main__":
    main()
