"""Which criterion leaves the smaller weight-reconstruction residual on trained layers (table T6; card, claim 4)."""

from collections.abc import Iterator

import torch
from torch import nn

from stages.chex.method.column_subset import (
    Criterion,
    reconstruction_residual,
    select_channels,
    svd_bound,
)

KEEP_FRACTIONS = (0.25, 0.5)  # of a layer's channels
CRITERIA: tuple[Criterion, ...] = ("random", "l1", "css", "css_greedy")


def selection_residuals(network: nn.Module, layers: list[str], seed: int) -> Iterator[tuple[str, float]]:
    """Relative residual of each criterion, mean over the tall layers, as (`<criterion> at <fraction>`, value)."""
    generator = torch.Generator().manual_seed(seed)
    weights = [dict(network.named_parameters())[f"{name}.weight"].detach() for name in layers]
    tall = [weight for weight in weights if weight[0].numel() >= len(weight)]
    for fraction in KEEP_FRACTIONS:
        kept = [max(1, int(len(weight) * fraction)) for weight in tall]
        for criterion in CRITERIA:
            values = [
                reconstruction_residual(w, select_channels(w, n, criterion, generator=generator))
                / float(w.square().sum())
                for w, n in zip(tall, kept, strict=True)
            ]
            yield f"{criterion} at {fraction:g}", sum(values) / len(values)
        bounds = [svd_bound(w, n) / float(w.square().sum()) for w, n in zip(tall, kept, strict=True)]
        yield f"bound at {fraction:g}", sum(bounds) / len(bounds)
