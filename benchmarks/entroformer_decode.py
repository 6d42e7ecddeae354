"""Decoding the same latents of a 768x512 picture: two passes, cached serial, and serial masked convolution.

Latents are drawn once and coded by every model (the sizes of the real scale, or the released ones; weights as
initialised: neither passes nor seconds depend on them). The peers are this project's own serial masked convolution with a
convolutional hyperprior (Minnen et al. 2018), which decodes each position from its 5x5 patch, and, where it is installed
(`uv pip install compressai`; it is no dependency), CompressAI's decoder of the same model.
CPU seconds of one thread, since machines are shared.
Then the peak memory of one attention layer over the 1536 positions, in processes of their own: dense, top-k as it is
trained (the scores of all keys are computed, then cut), and as files are coded (exact.py: a chunk of queries at a time).

    python -m benchmarks.entroformer_decode [--sizes real|released] [--runs 1]
"""

import argparse
import multiprocessing
import time
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


def compressai_seconds(y: torch.Tensor, z: torch.Tensor, channels: int, runs: int) -> list[float] | None:
    """Seconds of CompressAI's joint autoregressive decoder, side information included; None where it is not installed."""
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
        taken = []
        for _ in range(runs):
            out = torch.zeros_like(padded)
            start = time.process_time()
            parameters = model.h_s(model.entropy_bottleneck.decompress(strings, side.shape[-2:]))
            model._decompress_ar(content, out, parameters, *GRID, CONTEXT_KERNEL, border)
            taken.append(time.process_time() - start)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", choices=SIZES, default="real")
    parser.add_argument("--runs", type=int, default=1)
    options = parser.parse_args()
    channels, latents, hyper, attention = SIZES[options.sizes]
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    y = (2 * torch.randn(1, latents, *GRID, generator=generator)).round()
    z = torch.randn(1, hyper, GRID[0] // 4, GRID[1] // 4, generator=generator).round()
    seconds: dict[str, float] = {}
    for name, (hyper_kind, context) in MODELS.items():
        torch.manual_seed(0)
        spec = CodecSpec("conv", channels, latents, hyper, hyper_kind, context, attention, DEPTH)  # type: ignore[arg-type]
        coder = LatentCoder(ImageCodec(spec).entropy)
        content = coder.encode(y, z)
        taken = []
        for _ in range(options.runs):
            start = time.process_time()
            decoded, _ = coder.decode(content, *GRID)
            taken.append(time.process_time() - start)
        assert torch.equal(decoded.float(), y)
        seconds[name] = median(taken)
    peer = seconds["CNN, serial masked convolution"]
    if taken_ := compressai_seconds(y, z, channels, options.runs):
        seconds["CompressAI, serial masked convolution"] = peer = median(taken_)
    name_of_peer = list(seconds)[-1]
    print(
        f"decoding 768x512, {options.sizes} sizes ({latents} latents, width {attention.dim}), one thread, CPU seconds"
    )
    for name, value in seconds.items():
        print(f"  {name:38s} {value:8.2f} s   {peer / value:6.2f} times as fast as {name_of_peer}")
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
