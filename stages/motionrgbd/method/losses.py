"""The unimodal loss: cross-entropies of merged and branch scores, and recoupling distillation (paper 3.2)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.motionrgbd.method.unimodal import Logits, Temporal

Reduction = Literal["sum", "batchmean"]
BRANCH_WEIGHT = 0.5


def recoupling_distillation(
    student_BD: Tensor, classes_BRD: Tensor, tau: float, reduction: Reduction
) -> Tensor:
    """`KL(softmax(mean class token / tau) || softmax(student / tau))`; the class tokens are not trained by it.

    The released code sums over the batch (`sum`), so that its weight against the cross-entropy grows with the batch.
    """
    teacher_BD = F.softmax(classes_BRD.detach().mean(1) / tau, -1)
    return F.kl_div(F.log_softmax(student_BD / tau, -1), teacher_BD, reduction=reduction)


def distillation_of(temporal: Temporal, tau: float, reduction: Reduction) -> Tensor:
    """The distillation term of a clip batch, zero without RCM."""
    if temporal.student_BD is None:
        return temporal.classes_BRD.new_zeros(())
    return recoupling_distillation(temporal.student_BD, temporal.classes_BRD, tau, reduction)


def multi_branch_loss(
    logits: Logits, target_B: Tensor, smoothing: float, branches: bool = True
) -> Tensor:
    """`CE(merged) + 0.5 sum CE(branch)` with label smoothing; the merged term alone when not `branches`."""
    loss = F.cross_entropy(logits.merged_BK, target_B, label_smoothing=smoothing)
    if branches:
        for scores_BK in logits.branches_BRK.unbind(1):
            loss = loss + BRANCH_WEIGHT * F.cross_entropy(scores_BK, target_B, label_smoothing=smoothing)
    return loss


def total(parts: dict[str, Tensor]) -> Tensor:
    """Sum of the loss parts."""
    return torch.stack(list(parts.values())).sum()
