"""Measures on features: retrieval, nearest neighbour, pairs of a topic. Letters: Q queries, G gallery, C width, K views."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def retrieval_recall(
    query_QC: Tensor, query_y_Q: Tensor, gallery_GC: Tensor, gallery_y_G: Tensor, ranks: Sequence[int]
) -> dict[int, float]:
    """R@k: the share of queries, in percent, with their class among the k nearest by cosine."""
    similarity_QG = F.normalize(query_QC, dim=1) @ F.normalize(gallery_GC, dim=1).T
    order_QG = similarity_QG.argsort(dim=1, descending=True, stable=True)
    hit_QG = gallery_y_G[order_QG] == query_y_Q[:, None]
    return {k: 100 * float(hit_QG[:, :k].any(1).float().mean()) for k in ranks}


def standardised(train_NC: Tensor, *others_NC: Tensor) -> tuple[Tensor, ...]:
    """Features shifted and scaled to mean 0 and variance 1 on the training part; constant ones become 0."""
    mean_C, std_C = train_NC.mean(0), train_NC.std(0)
    scale_C = torch.where(std_C > 0, 1 / std_C, torch.zeros_like(std_C))
    return tuple((x_NC - mean_C) * scale_C for x_NC in (train_NC, *others_NC))


def topic_pairs(logit_NN: Tensor, topic_N: Tensor, video_N: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and labels (same topic?) of all pairs of clips of different videos; a pair's score is symmetric."""
    score_NN = (logit_NN + logit_NN.T) / 2
    pair_NN = torch.ones_like(logit_NN, dtype=torch.bool).triu(1) & (video_N[:, None] != video_N[None])
    return score_NN[pair_NN], (topic_N[:, None] == topic_N[None])[pair_NN]
