"""Mean intersection over union, both summed over the whole set. Legend: K classes, H W size of a map."""

import torch
from torch import Tensor

from stages.common.dense.semantic import IGNORED


def confusion(predicted_HW: Tensor, label_HW: Tensor, classes: int) -> Tensor:
    """Pixels by label (rows) and prediction (columns), int64 `[K, K]`; `IGNORED` labels are left out."""
    counted = label_HW != IGNORED
    pairs = label_HW[counted] * classes + predicted_HW[counted]
    return pairs.bincount(minlength=classes**2).view(classes, classes)


def mean_iou(confusion_KK: Tensor) -> float:
    """mIoU in percent; a class that neither labels nor predictions have takes no part."""
    counts_KK = confusion_KK.double()
    both_K = counts_KK.diagonal()
    either_K = counts_KK.sum(0) + counts_KK.sum(1) - both_K
    shown = either_K > 0
    return 100 * float(torch.mean(both_K[shown] / either_K[shown]))
