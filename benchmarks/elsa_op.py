"""The ELSA operator's backends against its unfold formulation and against neighbours of its size: time and peak memory.

Forward and backward at the stage shapes of ELSA-Swin-T, kernel 7, additive ghost head. Peers: a depthwise convolution of
the same kernel, and timm's window attention (projections taken out) on the same map. Every measurement is a process of its
own, the minimum of the runs after a warm-up. On a CPU, time is CPU time and peak the growth of the resident high-water mark
in one further run; on a GPU they are wall time and `max_memory_allocated`.

    python -m benchmarks.elsa_op [--threads 1] [--runs 7] [--stages 1]
"""

import argparse
import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from stages.elsa.method.aggregate import hadamard_ghost_aggregate

STAGES = ((2, 3, 32, 56, 56), (2, 6, 32, 28, 28), (2, 12, 32, 14, 14))  # batch, heads, channels a head, map
KERNEL = 7
NAMES = ("reference", "shift", "compiled", "triton", "depthwise convolution", "window attention")
PEERS = NAMES[4:]


def work(name: str, stage: int, device: str) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """What computes the output, and the tensors whose gradients are asked for."""
    batch, heads, channels, height, width = STAGES[stage]
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    v = normal(batch, heads, channels, height, width).requires_grad_()
    add = normal(heads * channels, KERNEL, KERNEL).requires_grad_()
    if name == "depthwise convolution":
        return lambda: torch.nn.functional.conv2d(
            v.flatten(1, 2), add[:, None], padding=KERNEL // 2, groups=heads * channels
        ), [v, add]
    if name == "window attention":
        from timm.models.swin_transformer import WindowAttention

        attention = WindowAttention(heads * channels, heads, window_size=KERNEL).to(device)
        attention.qkv = attention.proj = torch.nn.Identity()  # type: ignore[assignment]
        windows = batch * height * width // KERNEL**2
        qkv = normal(windows, KERNEL**2, 3 * heads * channels).requires_grad_()
        return lambda: attention(qkv), [qkv, attention.relative_position_bias_table]
    h = normal(batch, heads, KERNEL**2, height, width).softmax(2).requires_grad_()
    return lambda: hadamard_ghost_aggregate(v, h, None, add, KERNEL, backend=name), [v, h, add]  # type: ignore[arg-type]


def measure(name: str, stage: int, threads: int, runs: int) -> dict[str, float]:
    """Milliseconds of CPU (or GPU wall) time forward and both ways, and peak MB; largest gradient error of a backend."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(threads)
    forward, leaves = work(name, stage, device)
    clock = time.perf_counter if device == "cuda" else time.process_time

    def timed(both: bool) -> float:
        begin = clock()
        with torch.set_grad_enabled(both):
            out = forward()
        if both:
            torch.autograd.grad(out, leaves, torch.ones_like(out))
        if device == "cuda":
            torch.cuda.synchronize()
        return 1e3 * (clock() - begin)

    timed(True)  # warms up; a compiler's own memory is none of the operator's
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        timed(True)
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    else:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = resident("VmRSS")
        timed(True)
        peak = (resident("VmHWM") - before) / 2**10
    result = {
        "both": min(timed(True) for _ in range(runs)),
        "forward": min(timed(False) for _ in range(runs)),
    }
    if name not in (*PEERS, "reference"):
        ours = torch.autograd.grad(forward().square().sum(), leaves)
        result["error"] = gradient_error(ours, stage, device)
    return {**result, "peak": peak}


def resident(field: str) -> int:
    """Resident memory of this process in KiB, now (`VmRSS`) or at its highest (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def gradient_error(ours: tuple[Tensor, ...], stage: int, device: str) -> float:
    """Largest difference to the reference's gradients, relative to their largest value."""
    forward, leaves = work("reference", stage, device)
    reference = torch.autograd.grad(forward().square().sum(), leaves)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, reference, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--stages", type=int, default=1, help="how many of the three shapes")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "STAGE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]), options.threads, options.runs)))
        return
    names = [name for name in NAMES if name != "triton" or torch.cuda.is_available()]
    for stage, (batch, heads, channels, height, width) in enumerate(STAGES[: options.stages]):
        print(f"B{batch} C{heads * channels} {height}x{width} k{KERNEL}, {options.threads} thread(s)")
        print(
            f"  {'':24s}{'forward ms':>12s}{'both ms':>10s}{'peak MB':>10s}{'time':>8s}{'memory':>8s}   gradient error"
        )
        first: dict[str, float] | None = None
        for name in names:
            command = [sys.executable, "-m", "benchmarks.elsa_op", "--one", name, str(stage)]
            command += ["--threads", str(options.threads), "--runs", str(options.runs)]
            ran = subprocess.run(command, capture_output=True, text=True)
            if ran.returncode:
                print(f"  {name:24s}not here: {ran.stderr.strip().splitlines()[-1][:90]}")
                continue
            result = json.loads(ran.stdout.splitlines()[-1])
            first = first or result
            print(
                f"  {name:24s}{result['forward']:12.1f}{result['both']:10.1f}{result['peak']:10.1f}"
                f"{result['both'] / first['both']:8.3f}{result['peak'] / first['peak']:8.3f}"
                + (f"   {result['error']:.1e}" if "error" in result else ""),
                flush=True,
            )


if __name__ == "__main__":
    main()
