"""DSN with time folded into the batch against 3-D convolutions on the same weights, at equal tokens.

CPU time with one thread on a CPU, since machines are shared; wall time otherwise.

python -m benchmarks.motionrgbd_dsn [--threads 1] [--runs 3] [--frames 16] [--side 64] [--clips 1] [--device cpu]
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from stages.motionrgbd.method.dsn import inception_dsn
from stages.motionrgbd.released_forward import released_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dsn = inception_dsn().eval().to(options.device)
    side = options.side
    x_BTCHW = torch.randn(options.clips, options.frames, 3, side, side, device=options.device)
    guidance_BTHW = torch.rand(options.clips, options.frames, side, side, device=options.device)

    clock = time.process_time if options.threads == 1 and not x_BTCHW.is_cuda else time.perf_counter

    def seconds(work: Callable[[], Tensor], backward: bool) -> float:
        start = clock()
        with torch.set_grad_enabled(backward):
            tokens = work()
        if backward:
            tokens.sum().backward()
        if x_BTCHW.is_cuda:
            torch.cuda.synchronize()
        return clock() - start

    works = {
        "folded": lambda: dsn(x_BTCHW, guidance_BTHW),
        "3-D": lambda: released_tokens(dsn, x_BTCHW, guidance_BTHW),
    }
    print(
        f"{options.clips} clip(s) of {options.frames} x {side} x {side}, {options.device}, {options.threads} thread(s)"
    )
    for backward in (False, True):
        taken: dict[str, list[float]] = {name: [] for name in works}
        for run in range(options.runs + 1):
            for name, work in works.items():
                value = seconds(work, backward)
                if run:
                    taken[name].append(value)
        folded, plain = median(taken["folded"]), median(taken["3-D"])
        what = "forward + backward" if backward else "forward"
        print(f"  {what:20s} folded {folded:7.3f} s   3-D {plain:7.3f} s   x {plain / folded:.2f}")
    with torch.no_grad():
        ours, theirs = works["folded"](), works["3-D"]()
    print(
        f"  largest difference {float((ours - theirs).abs().max() / theirs.abs().max()):.0e} of the largest token"
    )


if __name__ == "__main__":
    main()
