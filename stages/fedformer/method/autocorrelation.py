"""Auto-correlation, Autoformer's replacement of attention (Wu et al. 2021, arXiv 2106.13008; baseline).

Shapes: B batch, L length of queries, S of keys and values, H heads, E head width, T delays that are kept.
"""

import math

import torch
from torch import Tensor, nn

from stages.fedformer.method.block import Block


class AutoCorrelation(Block):
    """Average of the values shifted by the few delays at which queries and keys agree best.

    Agreement is the mean over heads and channels of the circular cross-correlation. In training the delays
    are those of the batch's mean, in evaluation every series has its own.

    Args:
        factor: keep `int(factor * log(L))` delays.
    """

    reads = ("query", "key", "value")

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, q_BLHE: Tensor, k_BSHE: Tensor, v_BSHE: Tensor) -> Tensor:
        """`[B, L, H, E]`; keys and values are cut or filled with zeros to L."""
        length = q_BLHE.shape[1]
        k_BLHE, v_BLHE = (_fit(x, length) for x in (k_BSHE, v_BSHE))
        cross_BFHE = torch.fft.rfft(q_BLHE, dim=1) * torch.fft.rfft(k_BLHE, dim=1).conj()
        # the mean over heads and channels commutes with the transform: one short inverse instead of H E of
        # them
        agreement_BL = torch.fft.irfft(cross_BFHE.mean(dim=(2, 3)), n=length, dim=1)
        kept = int(self.factor * math.log(length))
        if self.training:
            delay_T = agreement_BL.mean(0).topk(kept).indices
            delay_BT = delay_T.expand(len(agreement_BL), -1)
        else:
            delay_BT = agreement_BL.topk(kept, dim=1).indices
        weight_BT = agreement_BL.gather(1, delay_BT).softmax(1)
        # the weighted sum of shifts is a correlation with a sparse kernel: one product in Fourier space, no
        # shifted copies
        kernel_BL = torch.zeros_like(agreement_BL).scatter_add(1, delay_BT, weight_BT)
        shifted_BFHE = (
            torch.fft.rfft(v_BLHE, dim=1) * torch.fft.rfft(kernel_BL, dim=1).conj()[:, :, None, None]
        )
        return torch.fft.irfft(shifted_BFHE, n=length, dim=1)


def _fit(x_BSHE: Tensor, length: int) -> Tensor:
    missing = max(0, length - x_BSHE.shape[1])
    return nn.functional.pad(x_BSHE[:, :length], (0, 0, 0, 0, 0, missing))
