"""Training between two updates: a step of the compact network against a step of the masked dense one.

The dense step is forward, backward, SGD and masking; the compact one the same without masks on sliced
parameters. Interleaved in one process, median of the steps.

    python -m benchmarks.chex_compact_step [--net resnet50] [--size 96] [--batch 8] [--threads 1] [--steps 5]
"""

import argparse
import time
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.chex.method.channel_groups import find_channel_groups
from stages.chex.method.compact import CompactModel
from stages.chex.method.explorer import ChannelExplorer, ExplorerConfig
from stages.chex.method.flops import MacModel
from stages.chex.method.resnet import build

SPARSITY = 0.7


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--net", default="resnet50")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    model = build(options.net, 1000, norm_scale=0.5)
    images = torch.randn(options.batch, 3, options.size, options.size)
    labels = torch.randint(0, 1000, (options.batch,))
    groups, _ = find_channel_groups(model, images)
    macs = MacModel(model, groups, images)
    config = ExplorerConfig(t_max=180, period=2, sparsity=SPARSITY, delta0=0.0)
    explorer = ChannelExplorer(model, groups, config, torch.Generator().manual_seed(0))
    explorer.initialise()
    start = time.perf_counter()
    compact = CompactModel(model, groups, explorer.masks)
    cutting = time.perf_counter() - start
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-3, momentum=0.9) for m in (model, compact.module)]
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(-1, options.steps):
        for i, net in enumerate((model, compact.module)):
            start = time.perf_counter()
            step(net, optimizers[i], images, labels)
            if i == 0:
                explorer.apply_masks()
            if run >= 0:
                times[i].append(time.perf_counter() - start)
    start = time.perf_counter()
    compact.scatter_()
    back = time.perf_counter() - start

    dense, small = median(times[0]), median(times[1])
    share = macs.of_masks(explorer.masks) / macs([g.units for g in groups])
    print(
        f"{options.net}, {options.batch} images of {options.size}x{options.size}, uniform S = {SPARSITY} "
        f"({share:.0%} of the MACs), {options.threads} thread(s), median of {options.steps}"
    )
    print(f"{'masked dense step':<44}{dense * 1e3:>8.0f} ms")
    print(f"{'compact step':<44}{small * 1e3:>8.0f} ms")
    print(f"{'ratio':<44}{dense / small:>8.1f}")
    print(f"{'cut and write back, once per update':<44}{(cutting + back) * 1e3:>8.0f} ms")


if __name__ == "__main__":
    main()
