"""Decoding the same latents of a 768x512 picture: two passes, cached serial, and serial masked convolution.

Latents are drawn once and coded by every model (the sizes of the real scale, or the released ones; weights as
initialised: neither passes nor seconds depend on them). The peers are this project's own serial masked convolution with a
convolutional hyperprior (Minnen et al. 2018), which decodes each position from its 5x5 patch, and, where it is installed
(`uv pip install compressai`; it is no dependency), CompressAI's decoder of the same model.
CPU seconds of one thread, since machines may be shared, and wall seconds on all cores, which needs an idle one.
Then the peak memory of one attention layer over the 1536 positions, in processes of their own: dense, top-k as it is
trained (the scores of all keys are computed, then cut), and as files are coded (exact.py: a chunk of queries at a time).

    python -m benchmarks.entroformer_decode [--sizes real|released] [--models ...] [--runs 1]
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch

from stages.entroformer.method.attention import AttentionSpec, TransformerStack, full_layout
from stages.entroformer.method.codec import CodecSpec, ImageCodec, LatentCoder
from stages.entroformer.method.context import CONTEXT_KERNEL
from stages.entroformer.method.exact import exact

GRID = (32, 48)
SIZES = {  # channels, latents, z, attention
    "real": (96, 128, 64, AttentionSpec(192, 4, 48, 4, 7, 32)),
    "released": (192, 384, 192, AttentionSpec(384, 6, 64, 4, 7, 32)),
}
DEPTH = 6
MODELS = {
    "Entroformer, two passes": ("transformer", "two-pass"),
    "Entroformer, serial, cached": ("transformer", "serial"),
    "CNN, checkerboard (two passes)": ("conv", "checkerboard-conv"),
    "CNN, serial masked convolution": ("conv", "masked-conv"),
}


def layer_memory(topk: int, coding: bool, dim: int, queue) -> None:
    """Peak memory that one attention block over the grid adds to a process, in MiB, and its CPU seconds."""
    torch.set_num_threads(1)
    spec = AttentionSpec(dim, 6, dim // 6, 4, 7, topk)
    stack, x = TransformerStack(spec, 1), torch.randn(1, GRID[0] * GRID[1], dim)
    layout = full_layout(*GRID, 7)
    if coding:
        exact(stack)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = peak()
    start = time.process_time()
    with torch.no_grad():
        stack(x, layout)
    queue.put((peak() - before, time.process_time() - start))


def peak() -> float:
    """Largest resident memory of this process, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@dataclass(frozen=True)
class Seconds:
    """What a decoding takes: CPU seconds of one thread, wall seconds on all cores."""

    one_thread: float
    all_cores: float

    @staticmethod
    def of(work: Callable[[], object], runs: int) -> "Seconds":
        """Medians of some runs of each, after one that is not counted."""
        work()
        cores, medians = os.cpu_count() or 1, []
        for threads, clock in ((1, time.process_time), (cores, time.perf_counter)):
            torch.set_num_threads(threads)
            taken = []
            for _ in range(runs):
                start = clock()
                work()
                taken.append(clock() - start)
            medians.append(median(taken))
        return Seconds(*medians)


def compressai_seconds(y: torch.Tensor, z: torch.Tensor, channels: int, runs: int) -> Seconds | None:
    """CompressAI's joint autoregressive decoder, side information included; None where it is not installed."""
    try:
        from compressai.models import JointAutoregressiveHierarchicalPriors
    except ImportError:
        return None
    model = JointAutoregressiveHierarchicalPriors(channels, y.shape[1]).eval()
    model.update(force=True)
    border = CONTEXT_KERNEL // 2
    with torch.no_grad():
        side = z.repeat(1, -(-channels // z.shape[1]), 1, 1)[
            :, :channels
        ]  # its z has as many channels as its transforms
        strings = model.entropy_bottleneck.compress(side)
        padded, inner = torch.nn.functional.pad(y, (border,) * 4), model.h_s(side)
        content = model._compress_ar(padded.clone(), inner, *GRID, CONTEXT_KERNEL, border)

        def decode() -> None:
            parameters = model.h_s(model.entropy_bottleneck.decompress(strings, side.shape[-2:]))
            out = torch.zeros_like(padded)
            model._decompress_ar(content, out, parameters, *GRID, CONTEXT_KERNEL, border)

        return Seconds.of(decode, runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", choices=SIZES, default="real")
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--runs", type=int, default=1)
    options = parser.parse_args()
    channels, latents, hyper, attention = SIZES[options.sizes]
    generator = torch.Generator().manual_seed(0)
    y = (2 * torch.randn(1, latents, *GRID, generator=generator)).round()
    z = torch.randn(1, hyper, GRID[0] // 4, GRID[1] // 4, generator=generator).round()
    seconds: dict[str, Seconds] = {}
    for name in options.models:
        hyper_kind, context = MODELS[name]
        torch.manual_seed(0)
        spec = CodecSpec("conv", channels, latents, hyper, hyper_kind, context, attention, DEPTH)  # type: ignore[arg-type]
        coder = LatentCoder(ImageCodec(spec).entropy)
        content = coder.encode(y, z)
        assert torch.equal(coder.decode(content, *GRID)[0].float(), y)
        seconds[name] = Seconds.of(partial(coder.decode, content, *GRID), options.runs)
    if peer := compressai_seconds(y, z, channels, options.runs):
        seconds["CompressAI, serial masked convolution"] = peer
    name_of_peer, peer = list(seconds.items())[-1]
    print(f"decoding 768x512, {options.sizes} sizes ({latents} latents, width {attention.dim})")
    for name, value in seconds.items():
        print(
            f"  {name:38s} one thread {value.one_thread:7.2f} s, {peer.one_thread / value.one_thread:5.1f} times as fast"
            f"   all cores {value.all_cores:7.2f} s, {peer.all_cores / value.all_cores:5.1f} times as fast"
        )
    print(f"  as {name_of_peer}")
    context_ = multiprocessing.get_context("spawn")
    for name, topk, coding in (
        ("dense", -1, False),
        ("top-32", 32, False),
        ("top-32, as files are coded", 32, True),
    ):
        queue = context_.Queue()
        process = context_.Process(target=layer_memory, args=(topk, coding, attention.dim, queue))
        process.start()
        memory, taken_s = queue.get()
        process.join()
        print(f"  one attention layer, {name:28s} {memory:7.0f} MiB more at the peak, {taken_s:.2f} s")


if __name__ == "__main__":
    main()
