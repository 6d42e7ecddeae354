"""Scores of clusters against classes: confusion, one-to-one matching, IoU. C classes, K clusters, any of both."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


class ConfusionMatrix:
    """Counts `[C, K]` of pixels by true class and predicted cluster; negative labels are ignored."""

    def __init__(self, n_gt: int, n_pred: int) -> None:
        self.counts_CK = torch.zeros(n_gt, n_pred, dtype=torch.int64)

    def update(self, gt: Tensor, pred: Tensor) -> None:
        """Add maps of equal shape."""
        n_gt, n_pred = self.counts_CK.shape
        valid = gt >= 0
        index = gt[valid].long() * n_pred + pred[valid].long()
        self.counts_CK += index.bincount(minlength=n_gt * n_pred).view(n_gt, n_pred).cpu()


@dataclass(frozen=True)
class Scores:
    """Percentages. `iou_C` is NaN for a class that neither truth nor prediction has; `match_C` is -1 without cluster."""

    match_C: np.ndarray
    iou_C: np.ndarray
    miou: float
    pixel_accuracy: float
    class_accuracy: float


def hungarian_match(counts_CK: Tensor | np.ndarray) -> np.ndarray:
    """Cluster of each class `[C]`, one to one, that maximises the matched pixels; -1 where there are fewer clusters."""
    counts = np.asarray(counts_CK, dtype=np.float64)
    classes, clusters = linear_sum_assignment(counts, maximize=True)
    match_C = np.full(len(counts), -1)
    match_C[classes] = clusters
    return match_C


def majority_match(counts_CK: Tensor | np.ndarray) -> np.ndarray:
    """Class of each cluster `[K]`, its most frequent one: many clusters to one class."""
    return np.asarray(counts_CK).argmax(0)


def segmentation_scores(counts_CK: Tensor | np.ndarray, match_C: np.ndarray | None = None) -> Scores:
    """Scores under a one-to-one matching (by default the best); pixels of unmatched clusters stay errors."""
    counts = np.asarray(counts_CK, dtype=np.float64)
    match_C = hungarian_match(counts) if match_C is None else match_C
    matched = match_C >= 0
    hit_C = np.where(matched, counts[np.arange(len(counts)), match_C], 0.0)
    predicted_C = np.where(matched, counts[:, match_C].sum(0), 0.0)
    return _scores(match_C, hit_C, counts.sum(1), predicted_C)


def many_to_one_scores(counts_CK: Tensor | np.ndarray) -> Scores:
    """Scores when every cluster counts as its majority class."""
    counts = np.asarray(counts_CK, dtype=np.float64)
    merged = np.zeros((len(counts), len(counts)))
    np.add.at(merged.T, majority_match(counts), counts.T)
    return segmentation_scores(merged, np.arange(len(counts)))


def _scores(match_C: np.ndarray, hit_C: np.ndarray, true_C: np.ndarray, predicted_C: np.ndarray) -> Scores:
    union_C = true_C + predicted_C - hit_C
    with np.errstate(invalid="ignore", divide="ignore"):
        iou_C, recall_C = 100 * hit_C / union_C, 100 * hit_C / true_C
    total = true_C.sum()
    return Scores(
        match_C,
        iou_C,
        _mean(iou_C),
        float(100 * hit_C.sum() / total) if total else float("nan"),
        _mean(recall_C),
    )


def _mean(values_C: np.ndarray) -> float:
    """Mean without NaN; NaN when there is nothing else."""
    return float(np.nanmean(values_C)) if np.isfinite(values_C).any() else float("nan")
