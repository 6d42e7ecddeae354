"""K-means with k-means++ starts, several of them, and re-seeded empty clusters.

The released code takes one random start, which can end far from the optimum even on separated blobs.
Shapes: N points, D features, K clusters.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

ITERATIONS = 100
CHUNK = 1 << 16  # points whose distances are held at once


@dataclass(frozen=True)
class KMeans:
    """Centroids `[K, D]` (means of the members), labels `[N]`, members of each cluster `[K]`, summed squared distance.

    With fewer distinct points than clusters some clusters stay empty; their centroids repeat a point.
    """

    centroids_KD: Tensor
    labels_N: Tensor
    sizes_K: Tensor
    inertia: float


def kmeans(
    x_ND: Tensor,
    k: int,
    metric: Literal["euclidean", "cosine"] = "euclidean",
    n_init: int = 5,
    seed: int = 0,
) -> KMeans:
    """The best of `n_init` starts by inertia. `cosine` normalises the points and the centroids.

    Raises:
        ValueError: there is no point, or k is not positive, or a value is not finite.
    """
    if not len(x_ND) or k < 1:
        raise ValueError(f"kmeans: {len(x_ND)} points, k = {k}; both must be at least 1")
    if not x_ND.isfinite().all():
        raise ValueError("kmeans: a feature is not finite")
    x_ND = F.normalize(x_ND, dim=1) if metric == "cosine" else x_ND
    runs = [
        _lloyd(x_ND, k, metric, torch.Generator().manual_seed(seed * 1009 + start)) for start in range(n_init)
    ]
    return min(runs, key=lambda run: run.inertia)


def assign(x_ND: Tensor, centroids_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest centroid of each point `[N]` (lowest index on ties) and the squared distance to it `[N]`."""
    labels, distances = [], []
    square_K = centroids_KD.square().sum(1)
    for part in x_ND.split(CHUNK):
        distance_NK = part.square().sum(1, keepdim=True) + square_K - 2 * part @ centroids_KD.T
        value, index = distance_NK.min(1)
        labels.append(index)
        distances.append(value.clamp(min=0))
    return torch.cat(labels), torch.cat(distances)


def _seed_centroids(x_ND: Tensor, k: int, generator: Generator) -> Tensor:
    """k-means++: each next centroid is a point drawn with its squared distance to the nearest one."""
    chosen = [int(torch.randint(len(x_ND), (1,), generator=generator))]
    nearest_N = (x_ND - x_ND[chosen[0]]).square().sum(1)
    for _ in range(k - 1):
        weight_N = nearest_N.double().cpu()
        weight_N = weight_N if float(weight_N.sum()) > 0 else torch.ones_like(weight_N)
        threshold = torch.rand(1, generator=generator, dtype=torch.float64) * weight_N.sum()
        chosen.append(min(int(torch.searchsorted(weight_N.cumsum(0), threshold, right=True)), len(x_ND) - 1))
        nearest_N = torch.minimum(nearest_N, (x_ND - x_ND[chosen[-1]]).square().sum(1))
    return x_ND[chosen].clone()


def _lloyd(x_ND: Tensor, k: int, metric: str, generator: Generator) -> KMeans:
    centroids_KD = _seed_centroids(x_ND, k, generator)
    labels_N, distance_N = assign(x_ND, centroids_KD)
    for _ in range(ITERATIONS):
        sizes_K = labels_N.bincount(minlength=k)
        sums_KD = torch.zeros_like(centroids_KD).index_add_(0, labels_N, x_ND)
        centroids_KD = torch.where(
            sizes_K[:, None] > 0, sums_KD / sizes_K.clamp(min=1)[:, None], centroids_KD
        )
        if metric == "cosine":
            centroids_KD = F.normalize(centroids_KD, dim=1)
        empty = (sizes_K == 0).nonzero()[:, 0]
        far = distance_N.topk(min(len(empty), len(x_ND))).indices
        far = far[distance_N[far] > 0]  # a point that is a centroid already cannot fill a cluster
        centroids_KD[empty[: len(far)]] = x_ND[far]
        before_N = labels_N
        labels_N, distance_N = assign(x_ND, centroids_KD)
        if not len(far) and torch.equal(before_N, labels_N):
            break
    return KMeans(centroids_KD, labels_N, labels_N.bincount(minlength=k), float(distance_N.double().sum()))
