"""How many channels each layer keeps: one global threshold on norm scales, or the same fraction everywhere.

Counts are made in integers: the release turns them into ratios and back and loses a channel for one in five
widths. Source: card, step 3b and "Numerically delicate" (iv), (vi).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def allocate_channels(scales: Sequence[Tensor], sparsity: float, min_channels: int = 1) -> list[int]:
    """Channels kept in each layer when one threshold on |scale| prunes `sparsity` of all of them.

    With N scales in all, sorted ascending, the threshold is the floor(N * sparsity)-th; what is not above it
    goes, ties included. The `min_channels` largest scales of every layer always stay and count as kept.

    Args:
        scales: [C_l] norm scales of each layer.
        sparsity: 0 <= sparsity < 1; 0 keeps everything.
        min_channels: at least so many stay in each layer.

    Returns:
        One count per layer.
    """
    return global_allocation(scales, min_channels)(sparsity)


def global_allocation(scales: Sequence[Tensor], min_channels: int = 1) -> Callable[[float], list[int]]:
    """`allocate_channels` of these scales as a function of the sparsity: they are ranked once."""
    sizes = [len(scale) for scale in scales]
    ranked = []
    for scale in scales:
        value = scale.detach().abs().double().cpu()
        protected = torch.argsort(value, descending=True, stable=True)[:min_channels]
        ranked.append(value.index_fill(0, protected, torch.inf))
    pooled_N, order_N = torch.cat(ranked).sort()
    layer_N = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))[order_N]

    def counts(sparsity: float) -> list[int]:
        if sparsity <= 0:
            return sizes
        threshold = pooled_N[min(int(len(pooled_N) * sparsity + 1e-9), len(pooled_N) - 1)]
        above = int(torch.searchsorted(pooled_N, threshold, right=True))
        left = torch.bincount(layer_N[above:], minlength=len(sizes)).tolist()
        return [max(n, min(min_channels, size)) for n, size in zip(left, sizes, strict=True)]

    return counts


def uniform_channels(sizes: Sequence[int], sparsity: float, min_channels: int = 1) -> list[int]:
    """floor(C * (1 - sparsity)) channels of every layer, but at least min(`min_channels`, C)."""
    return [max(int(size * (1 - sparsity) + 1e-9), min(min_channels, size)) for size in sizes]


def sparsity_for_macs(
    counts_at: Callable[[float], Sequence[int]], macs: Callable[[Sequence[int]], int], budget: float
) -> float:
    """The smallest sparsity (to 1e-6) whose sub-model costs at most `budget` multiply-accumulates.

    Args:
        counts_at: sparsity -> channels kept in each layer (`allocate_channels` or `uniform_channels` of some
            net).
        macs: channels kept in each layer -> multiply-accumulates (a `flops.MacModel`).
        budget: multiply-accumulates at batch 1.

    Raises:
        ValueError: even the smallest sub-model costs more.
    """
    smallest = macs(counts_at(1.0))
    if smallest > budget:
        raise ValueError(
            f"a budget of {budget:,.0f} MACs is out of reach: the smallest sub-model has {smallest:,}"
        )
    low, high = 0.0, 1.0
    if macs(counts_at(low)) <= budget:
        return low
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if macs(counts_at(middle)) <= budget else (middle, high)
    return high
