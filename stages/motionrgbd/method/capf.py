"""CAPF, cross-modal adaptive posterior fusion, and the plain fusions beside it (paper 3.3; lib/model/fusion_Net.py).

Shapes: B clips, T frames, D token width, K classes, R branches.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.motionrgbd.method.distillation import Reduction
from stages.motionrgbd.method.losses import distillation_of
from stages.motionrgbd.method.unimodal import Temporal, UnimodalNet

INTERACTION_DROPOUT, DISCRIMINATOR_DROPOUT = 0.4, 0.5


class FusionOutput(NamedTuple):
    """Scores of fused and single modalities, and what the losses need besides."""

    fused_BK: Tensor
    rgb_BK: Tensor
    depth_BK: Tensor
    features: tuple[Tensor, Tensor]  # [B, D] of both modalities, after interaction
    reconstruction_BD: Tensor | None
    modality: tuple[Tensor, Tensor] | None  # [B] logits: is it RGB?
    temporal: tuple[Temporal, Temporal]


class Interaction(nn.Module):
    """phi: what both modalities have to say to each other, from their concatenated unit vectors.

    The released code *reshapes* `[B, T, 2D]` to `[B, 2D, T]` where it means to transpose, and so mixes time and channels;
    `official_reshape` does the same.
    """

    def __init__(self, dim: int, official_reshape: bool = False) -> None:
        super().__init__()
        self.official_reshape = official_reshape
        self.conv1 = nn.Conv1d(2 * dim, dim, 1, bias=False)
        self.bn = nn.BatchNorm1d(dim)
        self.conv2 = nn.Conv1d(dim, dim, 1, bias=False)
        self.dropout = nn.Dropout(INTERACTION_DROPOUT)

    def forward(self, rgb_BTD: Tensor, depth_BTD: Tensor) -> Tensor:
        """What is added to both, `[B, T, D]`."""
        both_BTX = F.normalize(torch.cat([rgb_BTD, depth_BTD], -1), dim=-1)
        batch, frames, width = both_BTX.shape
        both_BXT = (
            both_BTX.reshape(batch, width, frames) if self.official_reshape else both_BTX.transpose(1, 2)
        )
        out_BDT = self.dropout(self.conv2(F.relu(self.bn(self.conv1(both_BXT)))))
        return out_BDT.reshape(rgb_BTD.shape) if self.official_reshape else out_BDT.transpose(1, 2)


def headless(net: UnimodalNet) -> UnimodalNet:
    """`net` without its heads: a fusion starts from class tokens, and a parameter nobody uses would stop DDP."""
    net.heads = nn.ModuleList()
    return net


def _mlp(*widths: int, last_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index, (width_in, width_out) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(width_in, width_out, bias=False))
        if last_norm or index < len(widths) - 2:
            layers += [nn.BatchNorm1d(width_out), nn.ReLU()]
    return nn.Sequential(*layers)


class CAPF(nn.Module):
    """Two trained unimodal networks, fused at their spatial tokens and at their class tokens.

    `spatial` and `temporal` switch the two interactions, `auxiliary` the discriminator and the reconstruction.
    """

    def __init__(
        self, rgb: UnimodalNet, depth: UnimodalNet, dim: int, classes: int, spatial: bool = True,
        temporal: bool = True, auxiliary: bool = True, official_reshape: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.rgb, self.depth = headless(rgb), headless(depth)
        self.spatial = Interaction(dim, official_reshape) if spatial else None
        self.temporal = Interaction(dim, official_reshape) if temporal else None
        self.rgb_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, classes))
        self.depth_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, classes))
        self.encoder = _mlp(2 * dim, 2 * dim, dim, dim // 2, dim // 2, last_norm=False)
        self.classifier = nn.Linear(dim // 2, classes, bias=False)
        self.decoder = _mlp(dim // 2, dim // 2, dim, last_norm=True) if auxiliary else None
        self.discriminator = nn.Linear(dim, 1, bias=False) if auxiliary else None
        self.dropout = nn.Dropout(DISCRIMINATOR_DROPOUT)

    def interact(self, rgb_BTD: Tensor, depth_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Spatial tokens of both modalities after their interaction."""
        if self.spatial is None:
            return rgb_BTD, depth_BTD
        shared_BTD = self.spatial(rgb_BTD, depth_BTD)
        return rgb_BTD + shared_BTD, depth_BTD + shared_BTD

    def fuse(self, rgb: Temporal, depth: Temporal) -> FusionOutput:
        """Scores from the class tokens of both modalities (merged over branches by maximum)."""
        rgb_BD, depth_BD = rgb.classes_BRD.amax(1), depth.classes_BRD.amax(1)
        sides = self.rgb_head(rgb_BD), self.depth_head(depth_BD)
        if self.temporal is not None:
            shared_BD = self.temporal(rgb_BD[:, None], depth_BD[:, None])[:, 0]
            rgb_BD, depth_BD = rgb_BD + shared_BD, depth_BD + shared_BD
        code_BX = self.encoder(torch.cat([rgb_BD, depth_BD], 1))
        reconstruction_BD, modality = None, None
        if self.decoder is not None and self.discriminator is not None:
            reconstruction_BD = self.decoder(code_BX)
            modality = (
                self.discriminator(self.dropout(rgb_BD))[:, 0],
                self.discriminator(self.dropout(depth_BD))[:, 0],
            )
        return FusionOutput(
            self.classifier(code_BX), *sides, (rgb_BD, depth_BD), reconstruction_BD, modality, (rgb, depth)
        )

    def forward(
        self, rgb_BTCHW: Tensor, depth_BTCHW: Tensor, rgb_guidance: Tensor, depth_guidance: Tensor
    ) -> FusionOutput:
        """Scores of clips of both modalities."""
        tokens = self.rgb.dsn(rgb_BTCHW, rgb_guidance), self.depth.dsn(depth_BTCHW, depth_guidance)
        rgb_BTD, depth_BTD = self.interact(*tokens)
        return self.fuse(self.rgb.temporal(rgb_BTD), self.depth.temporal(depth_BTD))


class ConcatFusion(nn.Module):
    """The baseline: class tokens side by side into an MLP with one hidden layer; everything is trained too."""

    def __init__(self, rgb: UnimodalNet, depth: UnimodalNet, dim: int, classes: int) -> None:
        super().__init__()
        self.rgb, self.depth = headless(rgb), headless(depth)
        self.rgb_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, classes))
        self.depth_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, classes))
        self.classifier = nn.Sequential(
            nn.LayerNorm(2 * dim), nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, classes)
        )

    def forward(
        self, rgb_BTCHW: Tensor, depth_BTCHW: Tensor, rgb_guidance: Tensor, depth_guidance: Tensor
    ) -> FusionOutput:
        """Scores of clips of both modalities."""
        rgb = self.rgb.temporal(self.rgb.dsn(rgb_BTCHW, rgb_guidance))
        depth = self.depth.temporal(self.depth.dsn(depth_BTCHW, depth_guidance))
        rgb_BD, depth_BD = rgb.classes_BRD.amax(1), depth.classes_BRD.amax(1)
        fused_BK = self.classifier(torch.cat([rgb_BD, depth_BD], 1))
        sides = self.rgb_head(rgb_BD), self.depth_head(depth_BD)
        return FusionOutput(fused_BK, *sides, (rgb_BD, depth_BD), None, None, (rgb, depth))


def fusion_loss(
    out: FusionOutput, target_B: Tensor, smoothing: float, tau: float, reduction: Reduction
) -> dict[str, Tensor]:
    """The parts of the loss, all of weight 1: `ce`, `bce` and `mse` (where the fusion has them), `distill`."""
    scores = (out.fused_BK, out.rgb_BK, out.depth_BK)
    ce = [F.cross_entropy(scores_BK, target_B, label_smoothing=smoothing) for scores_BK in scores]
    parts = {"ce": torch.stack(ce).sum()}
    if out.modality is not None and out.reconstruction_BD is not None:
        rgb_B, depth_B = out.modality
        parts["bce"] = F.binary_cross_entropy_with_logits(
            rgb_B, torch.ones_like(rgb_B)
        ) + F.binary_cross_entropy_with_logits(depth_B, torch.zeros_like(depth_B))
        parts["mse"] = torch.stack(
            [F.mse_loss(out.reconstruction_BD, feature_BD) for feature_BD in out.features]
        ).sum()
    parts["distill"] = torch.stack([distillation_of(side, tau, reduction) for side in out.temporal]).sum()
    return parts
