"""From values and calendar features to the model's width (card, "Embedding").

Shapes: B batch, L length, C variates, F calendar features, D width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CircularConv(nn.Conv1d):
    """Convolution over time with kernel 3, the series closed to a ring, no bias: `[B, L, C] -> [B, L, D]`.

    Written as one matrix product of three neighbouring rows; its weight keeps a convolution's shape `[D, C,
    3]`.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels, width, kernel_size=3, bias=False)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Convolve over L."""
        before, after = (
            torch.cat([x_BLC[:, -1:], x_BLC[:, :-1]], 1),
            torch.cat([x_BLC[:, 1:], x_BLC[:, :1]], 1),
        )
        return F.linear(torch.cat([before, x_BLC, after], dim=-1), self.weight.transpose(1, 2).flatten(1))


class TokenEmbedding(nn.Module):
    """Each time step and its two neighbours, projected."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.tokenConv = CircularConv(channels, width)  # the name official checkpoints use
        nn.init.kaiming_normal_(self.tokenConv.weight, mode="fan_in", nonlinearity="leaky_relu")

    def forward(self, x_BLC: Tensor) -> Tensor:
        """`[B, L, D]`."""
        return self.tokenConv(x_BLC)


class TimeFeatureEmbedding(nn.Module):
    """Calendar features, projected."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(features, width, bias=False)

    def forward(self, mark_BLF: Tensor) -> Tensor:
        """`[B, L, D]`."""
        return self.embed(mark_BLF)


class DataEmbedding(nn.Module):
    """Sum of both embeddings; with `position`, of sines and cosines of the position too (Informer and
    Transformer).
    """

    def __init__(
        self, channels: int, features: int, width: int, dropout: float, position: bool = False
    ) -> None:
        super().__init__()
        self.value_embedding = TokenEmbedding(channels, width)
        self.temporal_embedding = TimeFeatureEmbedding(features, width)
        self.position = position
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLC: Tensor, mark_BLF: Tensor) -> Tensor:
        """`[B, L, D]`."""
        x_BLD = self.value_embedding(x_BLC) + self.temporal_embedding(mark_BLF)
        if self.position:
            x_BLD = x_BLD + sinusoids(x_BLD.shape[1], x_BLD.shape[2], x_BLD.device)
        return self.dropout(x_BLD)


def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """Positional encoding `[L, D]`: sine in even columns, cosine in odd ones, wavelengths from 2 pi to
    10,000 times that.
    """
    rate = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10000.0) / width))
    angle = torch.arange(length, device=device)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :width]
