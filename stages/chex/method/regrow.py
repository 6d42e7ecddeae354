"""Which pruned channels come back: how many in all, how many per layer, and which.

Source: card, steps 3a (factor), 3e (counts), 3f (sampling) and "Numerically delicate" (i).

Shapes: C channels, d numbers per channel, n kept, m candidates.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from stages.chex.method.column_subset import channel_matrix, rank_tolerance

Decay = Literal["cosine", "linear", "constant"]


def regrow_factor(t: float, t_max: float, delta0: float, kind: Decay = "cosine") -> float:
    """Fraction of all channels regrown at time t: from delta0 at 0 to 0 at t_max (any unit).

    "constant" stays at delta0, also at t_max.
    """
    if kind == "constant":
        return delta0
    if kind == "linear":
        return delta0 * (1 - t / t_max)
    return delta0 * (1 + math.cos(math.pi * t / t_max)) / 2


def regrow_counts(kept: Sequence[int], sizes: Sequence[int], delta: float, exact: bool = True) -> list[int]:
    """The same fraction delta of every layer, at most what is pruned there (the paper's rule).

    Args:
        kept: channels kept in each layer.
        sizes: channels of each layer.
        delta: fraction of all channels to regrow.
        exact: largest-remainder rounding, so that the total is round(delta * sum(sizes)), or everything that
            is pruned if that is less; what a full layer cannot take, the others share. Otherwise floor(delta
            * C) in each layer (the released detection and segmentation code).

    Returns:
        Channels to regrow in each layer.
    """
    room = [size - n for size, n in zip(sizes, kept, strict=True)]
    if not exact:
        return [min(int(delta * size + 1e-9), r) for size, r in zip(sizes, room, strict=True)]
    total = min(round(delta * sum(sizes)), sum(room))

    def quotas(fraction: float) -> list[float]:
        return [min(fraction * size, r) for size, r in zip(sizes, room, strict=True)]

    low, high = 0.0, 1.0
    for _ in range(60):  # the common fraction at which the layers' room takes exactly `total`
        middle = (low + high) / 2
        low, high = (middle, high) if sum(quotas(middle)) < total else (low, middle)
    quota = quotas(high)
    counts = [int(q + 1e-9) for q in quota]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (counts[i] - quota[i], i))
    for i in [i for i in by_remainder if counts[i] < room[i]][: total - sum(counts)]:
        counts[i] += 1
    return counts


def projection_residual(weight: Tensor, keep: Tensor, candidates: Tensor) -> Tensor:
    """Distance of each candidate channel to the span of the kept ones: || x_j - P x_j ||_2.

    From the Gram matrix in float64, with a factorisation that sees the rank: where the kept channels span all
    of R^d the distance is 0 (a float32 pseudo-inverse returns about 1 there).

    Args:
        weight: [C, ...].
        keep: [n] channel indices.
        candidates: [m] channel indices.

    Returns:
        [m] float64.
    """
    X_Cd = channel_matrix(weight)
    X_nd, X_md = X_Cd[keep.to(X_Cd.device)], X_Cd[candidates.to(X_Cd.device)]
    if len(keep) == 0:
        return X_md.norm(dim=1)
    if len(keep) <= X_nd.shape[1]:
        G_nn, G_nm = X_nd @ X_nd.T, X_nd @ X_md.T
        L_nn, failed = torch.linalg.cholesky_ex(G_nn)
        pivots = L_nn.diagonal().square()
        if not failed and pivots.min() > 1e3 * rank_tolerance(G_nn.diagonal(), max(X_nd.shape)):
            explained = torch.linalg.solve_triangular(L_nn, G_nm, upper=False).square().sum(0)
        else:
            eig_n, Q_nn = torch.linalg.eigh(G_nn)
            real = eig_n > rank_tolerance(eig_n, max(X_nd.shape))
            explained = ((Q_nn[:, real].T @ G_nm).square() / eig_n[real, None]).sum(0)
    else:
        eig_d, Q_dd = torch.linalg.eigh(X_nd.T @ X_nd)
        real = eig_d > rank_tolerance(eig_d, max(X_nd.shape))
        explained = (X_md @ Q_dd[:, real]).square().sum(1)
    squared = X_md.square().sum(1)
    left = squared - explained
    # the subtraction is exact to a few units of the last place of ||x||^2: below that the residual is zero
    return torch.where(left > 1e-12 * squared, left, 0.0).sqrt()


def regrow_probabilities(eps: Tensor, power: float = 2.0, temperature: float = 1.0) -> Tensor:
    """softmax(eps ** power / temperature) over [m] candidates; power 2: the paper, 1: the release."""
    return torch.softmax(eps.double() ** power / temperature, dim=0)


def sample_regrow(p: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n positions drawn without replacement with probabilities p [m], ascending, [n] int64 on the CPU.

    An exponential race: unlike torch.multinomial it still draws n when fewer than n probabilities are above
    zero in floating point (squared residuals spread the softmax that far); those at zero then come in index
    order.
    """
    arrival_m = torch.empty(len(p), dtype=torch.float64).exponential_(generator=generator)
    order = torch.argsort(p.double().cpu() / arrival_m, descending=True, stable=True)
    return order[:n].sort().values
