"""Which channels to keep: a layer's channels as columns, and the column subset that explains the rest best.

A weight `[C, ...]` is seen as one column of d numbers per output channel. Its leverage scores come from the
Gram matrix of the smaller side in float64 (one product, one symmetric eigendecomposition) instead of an SVD
of the whole matrix. Source: card, step 3c and "Numerically delicate" (ii), (iii).

Shapes: C channels, d numbers per channel, r numerical rank, k singular vectors, n kept channels.
"""

from typing import Literal

import torch
from torch import Tensor

Criterion = Literal["css", "css_greedy", "l1", "geometric_median", "bn", "random"]
Wide = Literal["leverage", "l1"]


def channel_matrix(weight: Tensor) -> Tensor:
    """Weight [C, ...] as a float64 matrix with one row per channel, [C, d]."""
    return weight.detach().reshape(weight.shape[0], -1).double()


def rank_tolerance(eigenvalues: Tensor, size: int) -> Tensor:
    """Eigenvalues of a Gram matrix below this are rounding noise; `size` is the larger side of the matrix."""
    return eigenvalues.amax().clamp_min(0) * size * torch.finfo(torch.float64).eps


def leverage_scores(weight: Tensor, k: int, wide: Wide = "leverage") -> Tensor:
    """Norm of each channel's row in the top k right singular vectors of the d x C channel matrix.

    Args:
        weight: [C, ...].
        k: number of singular vectors, at least 1; capped at the numerical rank, beyond which they are
            arbitrary.
        wide: what to do if d < C: "leverage" as everywhere, or "l1" (the release): the L1 norm of the
            channel.

    Returns:
        [C] float64, in [0, 1] (except for "l1").
    """
    X_Cd = channel_matrix(weight)
    C, d = X_Cd.shape
    if d < C and wide == "l1":
        return X_Cd.abs().sum(1)
    small = min(C, d)
    eig, vectors = torch.linalg.eigh(X_Cd @ X_Cd.T if small == C else X_Cd.T @ X_Cd)  # ascending
    # no singular vector of rounding noise, and all of those that share the k-th singular value: single ones
    # out of an eigenspace would be arbitrary (orthogonal initialisation makes all singular values equal)
    top = (eig > rank_tolerance(eig, max(C, d))) & (eig >= eig[max(small - k, 0)] * (1 - 1e-9))
    V_Ck = vectors[:, top] if small == C else X_Cd @ vectors[:, top] / eig[top].sqrt()
    return V_Ck.norm(dim=1)


def select_channels(
    weight: Tensor,
    n_keep: int,
    criterion: Criterion = "css",
    *,
    scale: Tensor | None = None,
    wide: Wide = "leverage",
    generator: torch.Generator | None = None,
) -> Tensor:
    """The n_keep channels worth keeping; all-zero channels come last, ties go to the lower index.

    Args:
        weight: [C, ...].
        n_keep: 0 <= n_keep <= C.
        criterion: "css" (leverage scores), "css_greedy" (forward selection), "l1", "geometric_median" (FPGM:
            farthest from the other filters), "bn" (needs `scale`), "random" (needs a CPU `generator`).
        scale: [C] norm scales; only "bn" reads it.
        wide: see `leverage_scores`.
        generator: only "random" reads it.

    Returns:
        [n_keep] int64, ascending, on the CPU.
    """
    X_Cd = channel_matrix(weight)
    if criterion == "css":
        # rounding: channels that are equal in exact arithmetic must stay equal, so that the lower index wins
        score_C = leverage_scores(weight, n_keep, wide).round(decimals=9)
    elif criterion == "css_greedy":
        score_C = _forward_selection(X_Cd, n_keep)
    elif criterion == "l1":
        score_C = X_Cd.abs().sum(1)
    elif criterion == "geometric_median":
        score_C = torch.cdist(X_Cd, X_Cd).sum(1)
    elif criterion == "bn":
        if scale is None:
            raise ValueError("criterion 'bn' ranks channels by their norm scale: pass scale")
        score_C = scale.detach().abs().double()
    else:
        score_C = torch.rand(X_Cd.shape[0], generator=generator, dtype=torch.float64)
    alive_C = X_Cd.abs().amax(1).cpu() > 0
    order = torch.argsort(score_C.cpu().masked_fill(~alive_C, -1.0), descending=True, stable=True)
    return order[:n_keep].sort().values


def _forward_selection(X_Cd: Tensor, n_keep: int) -> Tensor:
    """Score [C]: n_keep for the channel that lowers the residual most, n_keep - 1 for the next, ..."""
    R_CC = X_Cd @ X_Cd.T  # Gram matrix of what the chosen channels leave unexplained
    noise = rank_tolerance(R_CC.diagonal(), max(X_Cd.shape))
    score_C = torch.zeros(X_Cd.shape[0], dtype=torch.float64, device=X_Cd.device)
    for place in range(n_keep):
        left_C = R_CC.diagonal()
        gain_C = torch.where(left_C > noise, R_CC.square().sum(0) / left_C, 0.0)
        best = int(gain_C.argmax())
        if gain_C[best] == 0:
            break  # the chosen channels span all others
        score_C[best] = n_keep - place
        R_CC = R_CC - torch.outer(R_CC[best], R_CC[best]) / R_CC[best, best]
    return score_C


def reconstruction_residual(weight: Tensor, keep: Tensor) -> float:
    """Squared Frobenius norm of what projecting all channels of [C, ...] on the kept ones [n] leaves over."""
    X_Cd = channel_matrix(weight)
    Q_dr = orthonormal_span(X_Cd[keep.to(X_Cd.device)])
    return float((X_Cd - (X_Cd @ Q_dr) @ Q_dr.T).square().sum())


def orthonormal_span(X_nd: Tensor) -> Tensor:
    """Orthonormal basis [d, r] of the row space of [n, d], r its numerical rank."""
    _, s, Vh = torch.linalg.svd(X_nd, full_matrices=False)
    rank = int((s.square() > rank_tolerance(s.square(), max(X_nd.shape))).sum()) if s.numel() else 0
    return Vh[:rank].T


def svd_bound(weight: Tensor, n_keep: int) -> float:
    """Sum of the squared singular values beyond the n_keep-th: no choice of channels leaves less."""
    return float(torch.linalg.svdvals(channel_matrix(weight))[n_keep:].square().sum())
