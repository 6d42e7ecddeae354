"""Seasonal-trend decomposition by moving averages, and the layer norm that goes with it (card,
"Decomposition").

Shapes: B batch, L length, D channels.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn


def moving_average(x_BLD: Tensor, kernel: int) -> Tensor:
    """Mean over `kernel` steps, stride 1, as long as the input: the first and last rows are repeated at the
    edges.

    Of an even kernel's odd number of repeated rows the front gets one more.
    """
    return _averaging_matrix(x_BLD.shape[1], kernel, x_BLD.device, x_BLD.dtype) @ x_BLD


@cache
def _averaging_matrix(length: int, kernel: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The average as one product, `[L, L]`: pooling along time, a strided axis here, was a tenth of a step."""
    front = kernel // 2
    steps_L = torch.arange(length)
    taken_LK = (steps_L[:, None] + torch.arange(kernel) - front).clamp(0, length - 1)
    matrix_LL = torch.zeros(length, length, dtype=torch.float64)
    matrix_LL.scatter_add_(1, taken_LK, torch.full(taken_LK.shape, 1 / kernel, dtype=torch.float64))
    return matrix_LL.to(device, dtype)


class SeriesDecomp(nn.Module):
    """Split a series into seasonal part and trend (paper, MOEDecomp).

    The trend is a mixture of moving averages; the weights of the mixture are a softmax of a linear function
    of each scalar. With one kernel the softmax is 1 and is not computed; the weights stay, because official
    checkpoints have them.
    """

    def __init__(self, kernels: Sequence[int]) -> None:
        super().__init__()
        self.kernels = tuple(kernels)
        self.layer = nn.Linear(1, len(self.kernels))
        if len(self.kernels) == 1:
            self.layer.requires_grad_(False)

    def forward(self, x_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Seasonal part and trend, both `[B, L, D]`; their sum is the input."""
        if len(self.kernels) == 1:
            trend_BLD = moving_average(x_BLD, self.kernels[0])
        else:
            means_BLDn = torch.stack([moving_average(x_BLD, kernel) for kernel in self.kernels], dim=-1)
            trend_BLD = (means_BLDn * self.layer(x_BLD[..., None]).softmax(-1)).sum(-1)
        return x_BLD - trend_BLD, trend_BLD


class CenteredLayerNorm(nn.Module):
    """Layer norm over channels, then the mean over time is taken away: what is left is seasonal."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Normalised `[B, L, D]` with zero mean over L."""
        y_BLD = self.layernorm(x_BLD)
        return y_BLD - y_BLD.mean(dim=1, keepdim=True)
