"""Accuracies in percent (card, "Metrics")."""

import torch
from torch import Tensor


def top_k(logits_NC: Tensor, label_N: Tensor, k: int = 1) -> float:
    """Share of samples whose label is among the `k` largest logits, x 100."""
    return 100 * float((logits_NC.topk(k, 1).indices == label_N[:, None]).any(1).double().mean())


def confusion_matrix(logits_NC: Tensor, label_N: Tensor) -> Tensor:
    """Counts `[C, C]`: rows are the true classes, columns the predicted ones."""
    classes = logits_NC.shape[1]
    return torch.bincount(label_N * classes + logits_NC.argmax(1), minlength=classes**2).view(
        classes, classes
    )


def mean_per_class_accuracy(logits_NC: Tensor, label_N: Tensor) -> float:
    """Mean over the classes that occur of the share of their samples predicted right, x 100."""
    confusion_CC = confusion_matrix(logits_NC, label_N).double()
    total_C = confusion_CC.sum(1)
    present_C = total_C > 0
    return 100 * float((confusion_CC.diagonal()[present_C] / total_C[present_C]).mean())
