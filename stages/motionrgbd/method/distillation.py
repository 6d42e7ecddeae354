"""Recoupling distillation: the temporal network teaches RCM's student vector (paper 3.2)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["sum", "batchmean"]


def recoupling_distillation(
    student_BD: Tensor, classes_BRD: Tensor, tau: float, reduction: Reduction
) -> Tensor:
    """`KL(softmax(mean class token / tau) || softmax(student / tau))`; the class tokens are not trained by it.

    The released code sums over the batch (`sum`), so that its weight against the cross-entropy grows with the batch.
    """
    teacher_BD = F.softmax(classes_BRD.detach().mean(1) / tau, -1)
    return F.kl_div(F.log_softmax(student_BD / tau, -1), teacher_BD, reduction=reduction)
