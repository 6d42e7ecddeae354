"""A training step of FEDformer-f against a straightforward one: equal weights, equal losses, time and memory.

The reference does what the method's text says literally: full spectra, a loop over the modes, zero tensors
for the whole output spectrum, all three projections around every block, a softmax over the one kernel, 1 x 1
convolutions. Time is interleaved in one process, median of the steps; memory is the bytes kept for the
backward pass, and the peak of a process of its own that does nothing but steps, above that of one that only
builds the model.

    python -m benchmarks.fedformer_step [--width 512] [--horizon 96] [--batch 32] [--threads 1] [--steps 5]
"""

import argparse
import copy
import multiprocessing
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.fedformer.complexity import kept_bytes
from stages.fedformer.method.decomposition import SeriesDecomp
from stages.fedformer.method.fourier import FourierBlock, FourierCrossAttention
from stages.fedformer.method.trunk import PROJECTIONS, BlockLayer, Config, FEDformer, FeedForward, Sizes
from stages.fedformer.training import adam


class LoopBlock(nn.Module):
    """FEB-f, mode by mode."""

    def __init__(self, block: FourierBlock) -> None:
        super().__init__()
        self.index, self.mix = block.modes.index.tolist(), block.mix

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`[B, H, E, L]`."""
        weight = torch.view_as_complex(self.mix.weight_HMIO2)
        x = q.permute(0, 2, 3, 1)
        spectrum = torch.fft.rfft(x)
        out = torch.zeros_like(spectrum)
        for place, mode in enumerate(self.index):
            out[..., place] = torch.einsum("bhi,hio->bho", spectrum[..., mode], weight[:, place])
        return torch.fft.irfft(out, n=x.shape[-1])


class LoopCross(nn.Module):
    """FEA-f, mode by mode where it selects and places."""

    def __init__(self, block: FourierCrossAttention) -> None:
        super().__init__()
        self.index_q, self.index_kv = block.modes_q.index.tolist(), block.modes_kv.index.tolist()
        self.mix, self.width = block.mix, block.width

    def select(self, x: Tensor, index: list[int]) -> Tensor:
        """Chosen coefficients `[B, H, E, M]`."""
        spectrum = torch.fft.rfft(x.permute(0, 2, 3, 1))
        out = torch.zeros(*spectrum.shape[:3], len(index), dtype=spectrum.dtype)
        for place, mode in enumerate(index):
            out[..., place] = spectrum[..., mode]
        return out

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`[B, H, E, L]`."""
        length = q.shape[1]
        xq, xk = self.select(q, self.index_q), self.select(k, self.index_kv)
        weight = torch.einsum("bhex,bhey->bhxy", xq, xk).tanh()
        mixed = torch.einsum("bhxy,bhey->bhex", weight, xk)
        mixed = torch.einsum("bhex,hxeo->bhox", mixed, torch.view_as_complex(self.mix.weight_HMIO2))
        out = torch.zeros(*mixed.shape[:3], length // 2 + 1, dtype=mixed.dtype)
        for place, mode in enumerate(self.index_q):
            out[..., mode] = mixed[..., place]
        return torch.fft.irfft(out / self.width / self.width, n=length)


class SoftmaxDecomp(nn.Module):
    """The mixture with its softmax, also over one kernel."""

    def __init__(self, decomp: SeriesDecomp) -> None:
        super().__init__()
        self.kernel, self.layer = decomp.kernels[0], decomp.layer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Seasonal part and trend, `[B, L, D]`."""
        back = (self.kernel - 1) // 2
        front = self.kernel - 1 - back
        padded = torch.cat([x[:, :1].repeat(1, front, 1), x, x[:, -1:].repeat(1, back, 1)], dim=1)
        mean = F.avg_pool1d(padded.permute(0, 2, 1), self.kernel, stride=1).permute(0, 2, 1)[..., None]
        trend = (mean * self.layer(x[..., None]).softmax(-1)).sum(-1)
        return x - trend, trend


class ConvFeedForward(nn.Module):
    """Two 1 x 1 convolutions."""

    def __init__(self, layer: FeedForward) -> None:
        super().__init__()
        self.enter, self.leave, self.dropout = layer.enter, layer.leave, layer.dropout

    def forward(self, x: Tensor) -> Tensor:
        """`[B, L, D]`."""
        y = self.dropout(F.gelu(F.conv1d(x.transpose(1, 2), self.enter.weight[..., None])))
        return self.dropout(F.conv1d(y, self.leave.weight[..., None]).transpose(1, 2))


def straightforward(model: FEDformer) -> FEDformer:
    """A copy of the model with the same weights that computes everything the long way."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        parent, _, child = name.rpartition(".")
        replacement: nn.Module | None = None
        match module:
            case FourierBlock():
                replacement = LoopBlock(module)
            case FourierCrossAttention():
                replacement = LoopCross(module)
            case SeriesDecomp():
                replacement = SoftmaxDecomp(module)
            case FeedForward():
                replacement = ConvFeedForward(module)
            case BlockLayer():
                module.reads = PROJECTIONS
        if replacement:
            setattr(model.get_submodule(parent), child, replacement)
    return model.requires_grad_(True)


def build(width: int, horizon: int, reference: bool) -> FEDformer:
    torch.manual_seed(0)
    sizes = Sizes(
        variates=7,
        features=4,
        seq_len=96,
        label_len=48,
        pred_len=horizon,
        width=width,
        hidden=4 * width,
        dropout=0.0,
    )
    model = FEDformer(Config(sizes), np.random.RandomState(0))
    return straightforward(model) if reference else model


def batch_of(horizon: int, batch: int) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((96, 7), (96, 4), (48 + horizon, 7), (48 + horizon, 4), (horizon, 7))
    *inputs, truth = (torch.randn(batch, *shape, generator=generator) for shape in shapes)
    return inputs, truth


def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: list[Tensor], truth: Tensor) -> float:
    loss = F.mse_loss(model(*inputs), truth)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()


def peak(width: int, horizon: int, batch: int, reference: bool, steps: int) -> int:
    """Peak resident bytes of this process after building the model and taking `steps` steps."""
    torch.set_num_threads(1)
    model = build(width, horizon, reference)
    optimizer = adam(model, 1e-4, 1.0)
    inputs, truth = batch_of(horizon, batch)
    for _ in range(steps):
        step(model, optimizer, inputs, truth)
    # getrusage would count the parent's memory at the time of the fork; this is of this program alone
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--horizon", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    inputs, truth = batch_of(o.horizon, o.batch)
    models = [build(o.width, o.horizon, reference) for reference in (True, False)]
    optimizers = [adam(model, 1e-4, 1.0) for model in models]
    times: tuple[list[float], list[float]] = ([], [])
    worst = 0.0
    for run in range(-1, o.steps):
        losses = []
        for i, model in enumerate(models):
            start = time.process_time()
            losses.append(step(model, optimizers[i], inputs, truth))
            if run >= 0:
                times[i].append(time.process_time() - start)
        worst = max(worst, abs(losses[0] / losses[1] - 1))
    kept = [kept_bytes(model.train(), inputs) for model in models]
    context = multiprocessing.get_context("spawn")  # a forked child would inherit this process's peak
    peaks = []
    for reference in (True, False):
        bounds = []
        for steps in (0, 2):
            with context.Pool(1) as pool:
                bounds.append(pool.apply(peak, (o.width, o.horizon, o.batch, reference, steps)))
        peaks.append(bounds[1] - bounds[0])
    print(f"width {o.width}, horizon {o.horizon}, batch {o.batch}, {o.threads} thread(s), {o.steps} steps")
    print(f"{'':28}{'reference':>12}{'ours':>12}{'ratio':>8}")
    rows = {
        "CPU seconds a step": [median(t) for t in times],
        "MiB kept for backward": [value / 2**20 for value in kept],
        "MiB of peak above the model": [value / 2**20 for value in peaks],
    }
    for name, (reference_value, ours) in rows.items():
        print(f"{name:28}{reference_value:12.3f}{ours:12.3f}{reference_value / ours:8.2f}")
    print(f"largest relative difference of losses over {o.steps + 1} steps: {worst:.1e}")


if __name__ == "__main__":
    main()
