"""Class means of features (card, "Step 1"): one pass, float64, features not normalised before averaging."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassMeans:
    """Per class: `sum [C, D]` of its features, `count [C]`, both float64."""

    sum: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """`[C, D]`; a class without samples has a row of NaN."""
        return self.sum / self.count[:, None]


def class_means(batches: Iterable[tuple[Tensor, Tensor]], num_classes: int) -> ClassMeans:
    """Accumulate (features `[B, D]`, labels `[B]`) batches; warns of classes that no sample has.

    Raises:
        ValueError: there is no batch, or a label is outside `0 .. num_classes - 1`.
    """
    total: Tensor | None = None
    count_C = torch.zeros(num_classes, dtype=torch.float64)
    for features_BD, label_B in batches:
        features_BD, label_B = features_BD.detach().double().cpu(), label_B.cpu()
        if bool((label_B < 0).any() | (label_B >= num_classes).any()):
            raise ValueError(f"a label is outside 0 .. {num_classes - 1}")
        if total is None:
            total = torch.zeros(num_classes, features_BD.shape[1], dtype=torch.float64)
        total.index_add_(0, label_B, features_BD)
        count_C.index_add_(0, label_B, torch.ones(len(label_B), dtype=torch.float64))
    if total is None:
        raise ValueError("no features to average")
    if empty := (count_C == 0).nonzero().flatten().tolist():
        warnings.warn(f"classes without a sample have no mean: {empty}", stacklevel=2)
    return ClassMeans(total, count_C)
