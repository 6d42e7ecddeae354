"""Guidance maps against the per-frame formulation of the released loader, and against the same loop as lean as it gets.

`released` does what the released loader does for every clip: frames are float64 (an array that is scaled before it becomes a
tensor stays so), every frame starts a window, those that run over the end included and thrown away; each window is a loop
over its frames, added to float32, then relu, scaling, greyscale, threshold, erosion and dilation of one map. The last two
are OpenCV's there and this project's here, which are as quick. `lean loop` is the same with float32 frames and without the
windows that are thrown away. `sums` compares the pooling alone.
CPU time of one thread, since machines are shared.

    python -m benchmarks.motionrgbd_guidance [--runs 3] [--windows 4 10] [--frames 16 64] [--sides 32 112 224]
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.motionrgbd.method.guidance import (
    CHUNK_NUMBERS,
    LUMA,
    dilate,
    erode,
    rank_pool,
    rank_pool_guidance,
)


def window_sum(frames: list[Tensor]) -> Tensor:
    """One window, frame by frame."""
    total = torch.zeros(frames[0].shape)
    for place, frame in enumerate(frames, 1):
        total += frame * float(2 * place - len(frames) - 1)
    return total


def scaled(x: Tensor) -> Tensor:
    """By the largest value, which is looked up again, as released."""
    return x / x.max() if x.max() != 0 else x / (x.max() + 1e-5)


def one_map(frames: list[Tensor]) -> Tensor:
    """The map `[H, W]` of one window."""
    pooled = F.relu(window_sum(frames))
    pooled -= pooled.min()
    pooled = scaled(pooled)
    grey = LUMA[0] * pooled[0] + LUMA[1] * pooled[1] + LUMA[2] * pooled[2]
    salient = torch.where(grey > grey.mean(), grey, torch.zeros_like(grey))
    salient = dilate(erode(salient[None, None], 2), 3)[0, 0]
    salient -= salient.min()
    salient = scaled(salient)
    return (grey + salient) * salient


def per_frame(
    frames: list[Tensor], window: int, starts: int, work: Callable[[list[Tensor]], Tensor]
) -> Tensor:
    """Work on the first `starts` windows, one after another: `[starts, ...]`."""
    return torch.stack([work(frames[first : first + window]) for first in range(starts)])


def seconds(works: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Median CPU seconds of each, interleaved, after one run that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for run in range(runs + 1):
        for name, work in works.items():
            start = time.process_time()
            work()
            if run:
                taken[name].append(time.process_time() - start)
    return {name: median(values) for name, values in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--windows", type=int, nargs="+", default=[4, 10])
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 112, 224])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("CPU ms of one clip, one thread")
    for side, frames, window in product(options.sides, options.frames, options.windows):
        pixels_TCHW = torch.randint(0, 256, (frames, 3, side, side))
        released = list((pixels_TCHW.double() - 127.5) / 128)
        lean = [frame.float() for frame in released]
        x_BTCHW = torch.stack(lean)[None]
        starts, chunk = frames - window + 1, max(1, CHUNK_NUMBERS // (3 * side * side))
        found = seconds(
            {
                "maps": partial(rank_pool_guidance, x_BTCHW, window),
                "released maps": partial(per_frame, released, window, frames, one_map),
                "lean maps": partial(per_frame, lean, window, starts, one_map),
                "sums": lambda x=x_BTCHW, w=window, c=chunk: [None for _ in rank_pool(x, w, c)],
                "released sums": partial(per_frame, released, window, frames, window_sum),
                "lean sums": partial(per_frame, lean, window, starts, window_sum),
            },
            options.runs,
        )
        ours = rank_pool_guidance(x_BTCHW, window)[0, window - 1 :]
        theirs = per_frame(released, window, starts, one_map)
        print(f"{side} px, {frames} frames, window {window}")
        for part in ("maps", "sums"):
            fast, slow, loop = found[part], found[f"released {part}"], found[f"lean {part}"]
            print(
                f"  {part}  {1e3 * fast:8.1f}   released {1e3 * slow:8.1f}  x {slow / fast:5.1f}"
                f"   lean loop {1e3 * loop:8.1f}  x {loop / fast:5.1f}"
            )
        print(f"  largest difference {float((ours - theirs).abs().max()):.0e}")


if __name__ == "__main__":
    main()
