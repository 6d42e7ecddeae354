"""RCM: tokens re-weighted over time and channel, and a student vector for distillation (paper 3.2; lib/model/DTN.py)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RCM(nn.Module):
    """Recoupling of tokens `[B, T, D]`: `Z' = gain * Z * (u v^T)`.

    `gain` is 1 in the paper. The two sigmoids multiply tokens by about 1/4, which a large position embedding then drowns.
    """

    def __init__(self, frames: int, hidden: int, dim: int, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.query = nn.Linear(frames, frames, bias=False)
        self.key = nn.Linear(frames, frames, bias=False)
        self.squeeze = nn.Linear(frames, hidden, bias=False)
        self.excite = nn.Linear(hidden, frames, bias=False)
        self.norm = nn.LayerNorm(frames)
        self.student = nn.Linear(frames, dim)

    def weights(self, z_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Weight of each frame `u` `[B, T]` and of each channel `v` `[B, D]`, in (0, 1)."""
        x_BDT = z_BTD.transpose(1, 2)
        mean_BT = x_BDT.mean(1)
        u_BT = torch.sigmoid(self.norm(self.excite(F.gelu(self.squeeze(mean_BT)))))
        # the mean over queries of their scores is the score of the mean query, which is the query of the mean
        query_BT = self.query(mean_BT)
        scores_BD = torch.einsum("bt,bdt->bd", query_BT, self.key(x_BDT)) / x_BDT.shape[-1] ** 0.5
        return u_BT, torch.sigmoid(scores_BD)

    def forward(self, z_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Recoupled tokens `[B, T, D]` and the student vector `[B, D]`."""
        u_BT, v_BD = self.weights(z_BTD)
        return z_BTD * (self.gain * u_BT[:, :, None] * v_BD[:, None]), self.student(u_BT)
