"""The two heads on pooled features: embeddings for VCL, and the topic predictor for TCL (card, "Network").

Letters: N clips, C feature width, d embedding width, K hidden width of the predictor.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Combine = Literal["concat", "difference", "dot"]
HEAD_BN_EPS = 1e-3


class ProjectionMLP(nn.Module):
    """Two hidden layers with batch norm and a linear one; the output has unit length."""

    def __init__(self, width: int, hidden: int = 1024, out: int = 128) -> None:
        super().__init__()
        self.linear_a = nn.Linear(width, hidden)
        self.linear_a_bn = nn.BatchNorm1d(hidden, eps=HEAD_BN_EPS)
        self.linear_b = nn.Linear(hidden, hidden)
        self.linear_b_bn = nn.BatchNorm1d(hidden, eps=HEAD_BN_EPS)
        self.logits_out_b2 = nn.Linear(hidden, out)

    def forward(self, h_NC: Tensor) -> Tensor:
        """Unit vectors `[N, d]`."""
        x = torch.relu(self.linear_a_bn(self.linear_a(h_NC)))
        x = torch.relu(self.linear_b_bn(self.linear_b(x)))
        return F.normalize(self.logits_out_b2(x), dim=-1)


class TopicPredictor(nn.Module):
    """g([t_i ; t_j]) for all pairs: the logit that two clips are of one video.

    The first layer on a concatenation is a sum, W [t_i ; t_j] = A t_i + B t_j: two products of N rows instead of
    one of N², and no `[N, N, 2 d]` input. What is left for each pair is an addition, a ReLU and a product of length K.

    `combine` "difference" feeds |t_i - t_j|, "dot" scales the similarity: two ablations (card, baseline 8).
    """

    def __init__(self, width: int = 128, hidden: int = 256, combine: Combine = "concat") -> None:
        super().__init__()
        self.combine = combine
        if combine == "dot":
            self.scale, self.offset = nn.Parameter(torch.tensor(10.0)), nn.Parameter(torch.tensor(-5.0))
        else:
            self.first = nn.Linear(2 * width if combine == "concat" else width, hidden)
            self.second = nn.Linear(hidden, 1)

    def forward(self, t_Nd: Tensor) -> Tensor:
        """Logits `[N, N]` of ordered pairs; the official second channel is their transpose."""
        return self.pairs(t_Nd, t_Nd)

    def pairs(self, t_Md: Tensor, u_Nd: Tensor) -> Tensor:
        """Logits `[M, N]` of the pairs (t_i, u_j)."""
        if self.combine == "dot":
            return self.scale * (t_Md @ u_Nd.T) + self.offset
        if self.combine == "difference":
            hidden_MNK = self.first((t_Md[:, None] - u_Nd[None]).abs())
        else:
            left_Kd, right_Kd = self.first.weight.chunk(2, dim=1)
            left_MK, right_NK = F.linear(t_Md, left_Kd, self.first.bias), F.linear(u_Nd, right_Kd)
            hidden_MNK = left_MK[:, None] + right_NK[None]
        return self.second(torch.relu(hidden_MNK))[..., 0]


class HiCoHead(nn.Module):
    """Both heads: unit embeddings `[N, d]` for VCL and pair logits `[N, N]` for TCL.

    `topic=False` leaves the second away (SimCLR and VCL rows).
    """

    def __init__(
        self,
        width: int,
        hidden: int = 1024,
        out: int = 128,
        predictor_hidden: int = 256,
        topic: bool = True,
        combine: Combine = "concat",
    ) -> None:
        super().__init__()
        self.vcl = ProjectionMLP(width, hidden, out)
        self.tcl = ProjectionMLP(width, hidden, out) if topic else None
        self.predictor = TopicPredictor(out, predictor_hidden, combine) if topic else None

    def forward(self, h_NC: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embeddings, and logits where there is a topic head."""
        z_Nd = self.vcl(h_NC)
        if self.tcl is None or self.predictor is None:
            return z_Nd, None
        return z_Nd, self.predictor(self.tcl(h_NC))
