"""The unimodal loss: cross-entropies of merged and branch scores, and recoupling distillation (paper 3.2)."""

import torch.nn.functional as F
from torch import Tensor

from stages.motionrgbd.method.distillation import Reduction, recoupling_distillation
from stages.motionrgbd.method.unimodal import Logits, Temporal

BRANCH_WEIGHT = 0.5


def distillation_of(temporal: Temporal, tau: float, reduction: Reduction) -> Tensor:
    """The distillation term of a clip batch, zero without RCM."""
    if temporal.student_BD is None:
        return temporal.classes_BRD.new_zeros(())
    return recoupling_distillation(temporal.student_BD, temporal.classes_BRD, tau, reduction)


def multi_branch_loss(logits: Logits, target_B: Tensor, smoothing: float, branches: bool = True) -> Tensor:
    """`CE(merged) + 0.5 sum CE(branch)` with label smoothing; the merged term alone when not `branches`."""
    loss = F.cross_entropy(logits.merged_BK, target_B, label_smoothing=smoothing)
    if branches:
        for scores_BK in logits.branches_BRK.unbind(1):
            loss = loss + BRANCH_WEIGHT * F.cross_entropy(scores_BK, target_B, label_smoothing=smoothing)
    return loss
