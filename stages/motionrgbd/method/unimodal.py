"""The unimodal network: DSN, RCM, DTN and a head for each branch (paper 3; lib/model/DSN.py and DTN.py).

Shapes: B clips, T frames, D token width, K classes, R branches.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stages.motionrgbd.method.dsn import DSN
from stages.motionrgbd.method.dtn import DTN
from stages.motionrgbd.method.rcm import RCM


class Temporal(NamedTuple):
    """What the temporal network makes of a clip's tokens."""

    classes_BRD: Tensor  # class tokens of the branches
    student_BD: Tensor | None  # RCM's vector; None without RCM


class Logits(NamedTuple):
    """Scores of a clip: of each branch and merged."""

    merged_BK: Tensor
    branches_BRK: Tensor


class UnimodalNet(nn.Module):
    """One modality: `spatial` makes tokens, `temporal` class tokens, `classify` scores."""

    def __init__(self, dsn: DSN, rcm: RCM | None, dtn: DTN, dim: int, classes: int) -> None:
        super().__init__()
        self.dsn, self.rcm, self.dtn = dsn, rcm, dtn
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, classes)) for _ in dtn.branches
        )

    def temporal(self, z_BTD: Tensor, picks: list[Tensor] | None = None) -> Temporal:
        """Recouple tokens and run the branches."""
        student_BD = None
        if self.rcm is not None:
            z_BTD, student_BD = self.rcm(z_BTD)
        return Temporal(self.dtn(z_BTD, picks), student_BD)

    def classify(self, classes_BRD: Tensor, temperature: float) -> Logits:
        """Branch scores divided by the sharpness temperature, and their elementwise maximum."""
        scores = [head(classes_BRD[:, branch]) for branch, head in enumerate(self.heads)]
        branches_BRK = torch.stack(scores, 1) / temperature
        return Logits(branches_BRK.amax(1), branches_BRK)

    def forward(self, x_BTCHW: Tensor, guidance_BTHW: Tensor, temperature: float) -> tuple[Logits, Temporal]:
        """Scores and class tokens of normalised frames with guidance."""
        temporal = self.temporal(self.dsn(x_BTCHW, guidance_BTHW))
        return self.classify(temporal.classes_BRD, temperature), temporal
