"""Hyper-cleaning: learn which training labels to trust (card, E9, `HyperCleaning`).

Lower level: softmax regression y on the training set, sample i weighted by sigmoid(x_i), plus RIDGE/2 ‖y‖².
Upper level: its cross-entropy on clean validation images. x is [..., N], one number per training image; y is
[..., I+1, K], weights and bias.
"""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

RIDGE = 1e-2
CLASSES = 10


class HyperCleaning:
    """The problem for S seeds at once: each has its own label noise.

    Args:
        x_NI: training images; a constant input is appended.
        y_SN: their labels, wrong ones among them, per seed.
        val_x_MI, val_y_M: clean validation images and labels.
    """

    def __init__(self, x_NI: Tensor, y_SN: Tensor, val_x_MI: Tensor, val_y_M: Tensor) -> None:
        self.x, self.y = _with_constant(x_NI), one_hot(y_SN, CLASSES).double()
        self.val_x, self.val_y = _with_constant(val_x_MI), one_hot(val_y_M, CLASSES).double()

    def validation_loss(self, y: Tensor) -> Tensor:
        """Upper-level cross-entropy, [S]."""
        return -((self.val_x @ y).log_softmax(-1) * self.val_y).sum(-1).mean(-1)

    def validation_grad(self, y: Tensor, rows_SB: Tensor) -> Tensor:
        """∂_y f on a mini-batch, [S, I+1, K]."""
        x_SBI = self.val_x[rows_SB]
        return _outer_mean(x_SBI, (x_SBI @ y).softmax(-1) - self.val_y[rows_SB])

    def batch(self, rows_SB: Tensor) -> tuple[Tensor, Tensor]:
        """Training images [S, B, I+1] and one-hot labels [S, B, K] of a mini-batch."""
        seeds_S1 = torch.arange(len(rows_SB))[:, None]
        return self.x[rows_SB], self.y[seeds_S1, rows_SB]

    def lower_grad(self, x: Tensor, y: Tensor, rows_SB: Tensor) -> Tensor:
        """∂_y g on a mini-batch, [S, I+1, K]."""
        x_SBI, y_SBK = self.batch(rows_SB)
        weight_SB1 = x.gather(-1, rows_SB).sigmoid()[..., None]
        return _outer_mean(x_SBI, weight_SB1 * ((x_SBI @ y).softmax(-1) - y_SBK)) + RIDGE * y

    def hvp(self, x: Tensor, y: Tensor, rows_SB: Tensor, h: Tensor) -> Tensor:
        """∂_yy g times h on a mini-batch, [S, I+1, K]."""
        x_SBI, _ = self.batch(rows_SB)
        p_SBK, q_SBK = (x_SBI @ y).softmax(-1), x_SBI @ h
        curved_SBK = p_SBK * (q_SBK - (p_SBK * q_SBK).sum(-1, keepdim=True))
        weight_SB1 = x.gather(-1, rows_SB).sigmoid()[..., None]
        return _outer_mean(x_SBI, weight_SB1 * curved_SBK) + RIDGE * h

    def hypergradient(self, x: Tensor, y: Tensor, rows_SB: Tensor, h: Tensor) -> Tensor:
        """-∂_xy g h on a mini-batch, [S, N]: non-zero at the batch's samples."""
        x_SBI, y_SBK = self.batch(rows_SB)
        weight_SB = x.gather(-1, rows_SB).sigmoid()
        agreement_SB = (((x_SBI @ y).softmax(-1) - y_SBK) * (x_SBI @ h)).sum(-1)
        values_SB = -weight_SB * (1 - weight_SB) * agreement_SB / rows_SB.shape[-1]
        return torch.zeros_like(x).scatter_add(-1, rows_SB, values_SB)


def _with_constant(x_NI: Tensor) -> Tensor:
    return torch.cat([x_NI, torch.ones(len(x_NI), 1, dtype=x_NI.dtype)], dim=1)


def _outer_mean(x_SBI: Tensor, r_SBK: Tensor) -> Tensor:
    return x_SBI.transpose(-1, -2) @ r_SBK / x_SBI.shape[-2]
