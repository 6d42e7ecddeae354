"""Bottom-up rivals on the same frozen backbone: colour and patch clusters, PiCIE-style and STEGO-style heads.

Shapes: B images, D width, h x w grid, P patches, K clusters.
"""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from stages.transfgu.method.kmeans import KMeans, kmeans

FIT_PATCHES = 20_000  # a k-means on patches is fitted on so many, drawn at random
PICIE_TEMPERATURE = 0.1
STEGO_POINTS = 40  # patches per image in a correspondence
# weight and shift of the self, nearest-neighbour and random pairs (Hamilton et al., ICLR 2022)
STEGO_PAIRS = ((0.67, 0.18), (0.25, 0.12), (0.63, 0.46))


def colour_features(images_BCHW: Tensor, patch: int) -> Tensor:
    """Mean and deviation of the colours of each patch `[B, 6, h, w]`."""
    mean = F.avg_pool2d(images_BCHW, patch)
    square = F.avg_pool2d(images_BCHW.square(), patch)
    return torch.cat([mean, (square - mean.square()).clamp(min=0).sqrt()], 1)


def patches_of(features_BDhw: Tensor) -> Tensor:
    """`[P, D]` of all images."""
    return features_BDhw.permute(0, 2, 3, 1).flatten(0, 2)


def fit_patches(features_BDhw: Tensor, k: int, cosine: bool, seed: int, n_init: int = 3) -> KMeans:
    """K-means on a seeded sample of the patches."""
    x_PD = patches_of(features_BDhw)
    order = torch.randperm(len(x_PD), generator=torch.Generator().manual_seed(seed))[:FIT_PATCHES]
    return kmeans(x_PD[order.to(x_PD.device)], k, "cosine" if cosine else "euclidean", n_init, seed)


def cluster_logits(features_BDhw: Tensor, centroids_KD: Tensor, cosine: bool) -> Tensor:
    """Cosine with, or minus squared distance to, each centroid `[B, K, h, w]`."""
    if cosine:
        unit = F.normalize(features_BDhw, dim=1)
        return torch.einsum("bdhw,kd->bkhw", unit, F.normalize(centroids_KD, dim=1))
    square_K = centroids_KD.square().sum(1)[None, :, None, None]
    return 2 * torch.einsum("bdhw,kd->bkhw", features_BDhw, centroids_KD) - square_K


class PatchHead(nn.Module):
    """A linear map plus a two-layer one, patch by patch."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(d_in, d_out, 1)
        self.nonlinear = nn.Sequential(nn.Conv2d(d_in, d_in, 1), nn.ReLU(), nn.Conv2d(d_in, d_out, 1))

    def forward(self, x_BDhw: Tensor) -> Tensor:
        """`[B, D, h, w]` -> `[B, d, h, w]`."""
        return self.linear(x_BDhw) + self.nonlinear(x_BDhw)


def picie_loss(
    z_VBdhw: tuple[Tensor, Tensor], centroids_VKd: tuple[Tensor, Tensor], labels_VBhw: tuple[Tensor, Tensor]
) -> Tensor:
    """PiCIE (Cho et al., CVPR 2021): each view against its own clusters and against the other view's."""
    losses = [
        F.cross_entropy(
            cluster_logits(z_VBdhw[a], centroids_VKd[b], True) / PICIE_TEMPERATURE, labels_VBhw[b]
        )
        for a in (0, 1)
        for b in (0, 1)
    ]
    return torch.stack(losses).mean()


def stego_loss(features: list[Tensor], codes: list[Tensor], generator: Generator) -> Tensor:
    """Correspondence distillation: codes should correspond where frozen features do.

    `features` and `codes` are those of the images themselves, of their neighbours and of random images, `[B, D, h, w]`.
    """
    losses = []
    for (weight, shift), other_f, other_c in zip(STEGO_PAIRS, features, codes, strict=True):
        places = [
            torch.randint(features[0][0, 0].numel(), (STEGO_POINTS,), generator=generator) for _ in range(2)
        ]
        f_Bpq = _correspondence(features[0], other_f, places)
        s_Bpq = _correspondence(codes[0], other_c, places)
        f_Bpq = f_Bpq - f_Bpq.mean(2, keepdim=True)  # spatial centring
        losses.append(-weight * ((f_Bpq - shift) * s_Bpq.clamp(min=0)).mean())
    return torch.stack(losses).sum()


def _correspondence(a_BDhw: Tensor, b_BDhw: Tensor, places: list[Tensor]) -> Tensor:
    a, b = (
        F.normalize(x.flatten(2)[:, :, place], dim=1)
        for x, place in zip((a_BDhw, b_BDhw), places, strict=True)
    )
    return a.mT @ b
