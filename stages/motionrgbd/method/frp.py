"""The FRP layer: two learnt numbers turn a guidance map into a gain on features (official lib/model/FRP.py)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FRP(nn.Module):
    """`a x + b x (1 + pool(g))`; one instance serves all places of a network. It starts as the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.taps = nn.Parameter(torch.tensor([1.0, 0.0]))

    def forward(self, x_NChw: Tensor, guidance_NHW: Tensor) -> Tensor:
        """Features of N frames `[N, C, h, w]` and their guidance; the guidance is max-pooled to h x w.

        Where H is h times a power of two this is the released repeated 2 x 2 pooling; other sizes, which it refuses, work.
        """
        pooled_Nhw = F.adaptive_max_pool2d(guidance_NHW, x_NChw.shape[-2:])
        plain, guided = self.taps
        return x_NChw * (plain + guided * (1 + pooled_Nhw)).unsqueeze(1)
