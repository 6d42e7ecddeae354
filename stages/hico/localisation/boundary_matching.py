"""BMN, the boundary-matching network: where in an untrimmed video something happens (Lin et al., ICCV 2019).

A video is features at T places spread evenly over it. The network says of each place how likely something starts and
ends there, and of every proposal (start place s, d + 1 places long) how well it covers something. Of what a proposal
covers, and half its length on either side, N points are looked at, each the mean of `BINS` linear interpolations.

Letters: B videos, C channels, T places, D durations, N points of a proposal, O channels after the points are joined.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONTEXT = 0.5  # on either side of a proposal, as a share of its length
BINS = 3  # interpolations that are averaged to one point
GROUPS = 4  # of the first convolutions
BOUNDARY = 3  # places that count as the region of a boundary
LIKELY, GOOD, FAIR, POOR = 0.5, 0.9, 0.7, 0.3  # bounds of boundary scores and of temporal IoU, as published
REGRESSION_WEIGHT = 10.0
EPSILON = 1e-6  # to probabilities before their logarithm


class Scores(NamedTuple):
    """What the network says: `start` and `end` `[B, T]`, `quality` `[B, 2, D, T]` (classified, regressed); in 0 .. 1."""

    start: Tensor
    end: Tensor
    quality: Tensor


class Targets(NamedTuple):
    """What it should say: `start` and `end` `[B, T]`, and the best temporal IoU of every proposal `[B, D, T]`."""

    start: Tensor
    end: Tensor
    iou: Tensor


def sampling_matrix(places: int, durations: int, points: int) -> Tensor:
    """Weights with which proposals see places: sparse `[D * T, N * T]`, rows (d, s), columns (n, place).

    Points outside the video weigh nothing, and so do proposals that run over its end.
    """
    d_D11, s_1T1 = np.arange(durations)[:, None, None], np.arange(places)[None, :, None]
    margin_D11 = CONTEXT * (d_D11 + 1)
    share_S = np.linspace(0, 1, points * BINS)
    at_DTS = s_1T1 - margin_D11 + share_S * (d_D11 + 2 * margin_D11)
    below_DTS = np.floor(at_DTS)
    row_DTS = np.broadcast_to(d_D11 * places + s_1T1, at_DTS.shape)
    point_DTS = np.broadcast_to(np.arange(points * BINS) // BINS, at_DTS.shape)
    fits_DTS = np.broadcast_to(s_1T1 + d_D11 < places, at_DTS.shape)
    entries = []
    for place_DTS, weight_DTS in ((below_DTS, 1 - (at_DTS - below_DTS)), (below_DTS + 1, at_DTS - below_DTS)):
        kept = fits_DTS & (place_DTS >= 0) & (place_DTS < places)
        column = point_DTS[kept] * places + place_DTS[kept].astype(np.int64)
        entries.append((row_DTS[kept], column, weight_DTS[kept] / BINS))
    rows, columns, weights = (torch.from_numpy(np.concatenate(part)) for part in zip(*entries, strict=True))
    size = (durations * places, points * places)
    entry = torch.stack([rows, columns])
    return torch.sparse_coo_tensor(entry, weights.float(), size, check_invariants=True).coalesce()


class BoundaryMatching(nn.Module):
    """Features `[B, C, T]` -> `[B, O, D, T]`: the points of every proposal, joined by one weight per channel and point.

    Published as a dense product that lays out `[B, C, N, D, T]`, and a convolution over N. Here the weights are applied
    first, where there are T places and not D * T proposals, and the sampling after it, as a sparse product: the same
    sum in another order, with a small part of the work and of the memory (`benchmarks.hico_boundary_matching`).
    """

    def __init__(self, inputs: int, outputs: int, places: int, durations: int, points: int) -> None:
        super().__init__()
        self.weight_OCN = nn.Parameter(torch.empty(outputs, inputs, points))
        self.bias_O = nn.Parameter(torch.zeros(outputs))
        nn.init.kaiming_uniform_(self.weight_OCN, a=5**0.5)  # as torch does for convolutions
        self.durations, self.places = durations, places
        self.sampling = sampling_matrix(
            places, durations, points
        )  # no buffer: DDP cannot broadcast sparse ones

    def forward(self, x_BCT: Tensor) -> Tensor:
        """See the class."""
        videos, outputs = len(x_BCT), len(self.bias_O)
        self.sampling = self.sampling.to(x_BCT.device)
        joined_NTBO = torch.einsum("ocn,bct->ntbo", self.weight_OCN, x_BCT)
        sampled = torch.sparse.mm(self.sampling, joined_NTBO.reshape(-1, videos * outputs))
        joined_DTBO = sampled.view(self.durations, self.places, videos, outputs) + self.bias_O
        return joined_DTBO.permute(2, 3, 0, 1)


class BMN(nn.Module):
    """Features of videos `[B, C, T]` -> `Scores`.

    Args:
        channels: of the features.
        places, durations, points: T, D and N; published 100, 100 and 32.
        width: of what proposals are judged by; published 128, with twice and four times as much elsewhere.
    """

    def __init__(self, channels: int, places: int, durations: int, points: int, width: int) -> None:
        super().__init__()
        wide = 2 * width
        self.base = nn.Sequential(
            _convolution(channels, wide), nn.ReLU(), _convolution(wide, wide), nn.ReLU()
        )
        self.start = nn.Sequential(_convolution(wide, wide), nn.ReLU(), nn.Conv1d(wide, 1, 1))
        self.end = nn.Sequential(_convolution(wide, wide), nn.ReLU(), nn.Conv1d(wide, 1, 1))
        self.reduce = nn.Sequential(nn.Conv1d(wide, width, 3, padding=1), nn.ReLU())
        self.matching = BoundaryMatching(width, 4 * width, places, durations, points)
        self.judge = nn.Sequential(
            nn.ReLU(), nn.Conv2d(4 * width, width, 1),
            nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(), nn.Conv2d(width, 2, 1),
        )  # fmt: skip

    def forward(self, x_BCT: Tensor) -> Scores:
        """See the class."""
        base_BCT = self.base(x_BCT)
        start_B1T, end_B1T = self.start(base_BCT), self.end(base_BCT)
        quality_B2DT = self.judge(self.matching(self.reduce(base_BCT)))
        return Scores(start_B1T[:, 0].sigmoid(), end_B1T[:, 0].sigmoid(), quality_B2DT.sigmoid())


def _convolution(inputs: int, outputs: int) -> nn.Conv1d:
    return nn.Conv1d(inputs, outputs, 3, padding=1, groups=GROUPS)


def proposal_bounds(places: int, durations: int) -> tuple[Tensor, Tensor]:
    """Start `[1, T]` and end `[D, T]` of every proposal, as shares of the video; ends beyond 1 are no proposals."""
    start_1T = torch.arange(places)[None] / places
    return start_1T, start_1T + (torch.arange(durations)[:, None] + 1) / places


def targets(truths: list[Tensor], places: int, durations: int) -> Targets:
    """Of videos, from their true segments `[K, 2]` (start, end as shares of the video)."""
    edges_T = torch.arange(places) / places
    start_1T, end_DT = proposal_bounds(places, durations)
    starts: list[Tensor] = []
    ends: list[Tensor] = []
    ious: list[Tensor] = []
    for truth_K2 in truths:
        iou_KDT = torch.stack([_iou(start_1T, end_DT, *truth) for truth in truth_K2.tolist()] or [0 * end_DT])
        ious.append(iou_KDT.amax(0) * (end_DT <= 1 + 1e-6))
        for found, edge_K in ((starts, truth_K2[:, 0]), (ends, truth_K2[:, 1])):
            half = BOUNDARY / 2 / places
            low_KT = torch.maximum(edges_T, (edge_K - half)[:, None])
            high_KT = torch.minimum(edges_T + 1 / places, (edge_K + half)[:, None])
            covered_KT = ((high_KT - low_KT) * places).clamp(0)
            found.append(covered_KT.amax(0) if len(edge_K) else 0 * edges_T)
    return Targets(torch.stack(starts), torch.stack(ends), torch.stack(ious))


def _iou(start: Tensor, end: Tensor, first: float, last: float) -> Tensor:
    shared = (end.clamp(max=last) - start.clamp(min=first)).clamp(0)
    return shared / (end - start + (last - first) - shared)


def bmn_loss(scores: Scores, wanted: Targets, generator: torch.Generator) -> Tensor:
    """Boundaries + classification of proposals + 10 times regression of their IoU (BMN, section 3.4)."""
    durations, places = wanted.iou.shape[1:]
    valid_DT = (proposal_bounds(places, durations)[1] <= 1 + 1e-6).to(wanted.iou.device)
    classified_BDT, regressed_BDT = scores.quality[:, 0], scores.quality[:, 1]
    everywhere = torch.ones_like(wanted.start, dtype=torch.bool)
    return (
        balanced_logistic(scores.start, wanted.start > LIKELY, everywhere)
        + balanced_logistic(scores.end, wanted.end > LIKELY, everywhere)
        + balanced_logistic(classified_BDT, wanted.iou > GOOD, valid_DT.expand_as(wanted.iou))
        + REGRESSION_WEIGHT * regression_loss(regressed_BDT, wanted.iou, generator)
    )


def balanced_logistic(probability: Tensor, positive: Tensor, valid: Tensor) -> Tensor:
    """Logistic loss in which positives and negatives weigh half each, however many there are."""
    chosen, other = positive & valid, ~positive & valid
    log_chosen = (torch.log(probability + EPSILON) * chosen).sum() / chosen.sum().clamp(1)
    log_other = (torch.log(1 - probability + EPSILON) * other).sum() / other.sum().clamp(1)
    return -(log_chosen + log_other) / 2


def regression_loss(regressed_BDT: Tensor, iou_BDT: Tensor, generator: torch.Generator) -> Tensor:
    """Half the squared error over all proposals of high IoU, and about as many of middle and of low IoU, drawn."""
    high = iou_BDT > FAIR
    middle = (iou_BDT <= FAIR) & (iou_BDT > POOR)
    low = (iou_BDT <= POOR) & (iou_BDT > 0)
    weight = high.float()
    for others in (middle, low):
        share = (high.sum() / others.sum().clamp(1)).clamp(max=1)
        draw = torch.rand(iou_BDT.shape, generator=generator).to(iou_BDT.device)
        weight = weight + (others & (draw < share))
    return 0.5 * (weight * F.mse_loss(regressed_BDT, iou_BDT, reduction="none")).sum() / weight.sum().clamp(1)
