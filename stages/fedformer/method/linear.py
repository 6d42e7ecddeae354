"""Floors that any transformer should beat: the last value repeated, and linear maps over time (Zeng et al.
2023, arXiv 2205.13504).

They take the same inputs as the transformers and look at the values only. Shapes: B batch, I input length, O
horizon, C variates.
"""

from torch import Tensor, nn

from stages.fedformer.method.decomposition import moving_average

DLINEAR_KERNEL = 25


class RepeatLast(nn.Module):
    """The last value, O times. Nothing to train."""

    def __init__(self, pred_len: int) -> None:
        super().__init__()
        self.pred_len = pred_len

    def forward(self, x_BIC: Tensor, mark_BIF: Tensor, x_dec: Tensor, mark_dec: Tensor) -> Tensor:
        """`[B, O, C]`."""
        return x_BIC[:, -1:].expand(-1, self.pred_len, -1)


class DLinear(nn.Module):
    """One linear map over time of the trend and one of the rest, the same for every variate."""

    def __init__(self, seq_len: int, pred_len: int) -> None:
        super().__init__()
        self.seasonal, self.trend = nn.Linear(seq_len, pred_len), nn.Linear(seq_len, pred_len)

    def forward(self, x_BIC: Tensor, mark_BIF: Tensor, x_dec: Tensor, mark_dec: Tensor) -> Tensor:
        """`[B, O, C]`."""
        trend_BIC = moving_average(x_BIC, DLINEAR_KERNEL)
        seasonal_BCI = (x_BIC - trend_BIC).transpose(1, 2)
        return (self.seasonal(seasonal_BCI) + self.trend(trend_BIC.transpose(1, 2))).transpose(1, 2)


class NLinear(nn.Module):
    """One linear map over time of the differences from the last value."""

    def __init__(self, seq_len: int, pred_len: int) -> None:
        super().__init__()
        self.linear = nn.Linear(seq_len, pred_len)

    def forward(self, x_BIC: Tensor, mark_BIF: Tensor, x_dec: Tensor, mark_dec: Tensor) -> Tensor:
        """`[B, O, C]`."""
        last_B1C = x_BIC[:, -1:]
        return self.linear((x_BIC - last_B1C).transpose(1, 2)).transpose(1, 2) + last_B1C
