"""GFLV2's head and losses: boxes as distributions, and their sharpness as quality.

Li et al., Generalized Focal Loss (NeurIPS 2020) and V2 (CVPR 2021). Legend: B images, K classes, N positions,
R = reg_max + 1 bins.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REG_MAX = 16
TOP_BINS = 4
PRIOR = 0.01  # probability of every class at the start


def quality_focal_loss(score_NK: Tensor, label_N: Tensor, quality_N: Tensor, beta: float = 2.0) -> Tensor:
    """Focal loss against a soft target, per position `[N]`.

    The target is the box's quality on its class and 0 elsewhere; label K is background.
    """
    classes = score_NK.shape[1]
    target_NK = F.one_hot(label_N, classes + 1)[:, :classes] * quality_N[:, None]
    target_NK = target_NK.to(score_NK.dtype)
    loss_NK = F.binary_cross_entropy(score_NK, target_NK, reduction="none")
    return (loss_NK * (score_NK - target_NK).abs().pow(beta)).sum(1)


def distribution_focal_loss(logits_NR: Tensor, target_N: Tensor) -> Tensor:
    """Cross entropy with the two bins around a target distance (in strides, below R - 1), weighted by nearness; `[N]`."""
    left_N = target_N.long()
    weight_N = target_N - left_N
    near, far = (F.cross_entropy(logits_NR, bin_N, reduction="none") for bin_N in (left_N, left_N + 1))
    return near * (1 - weight_N) + far * weight_N


def integral(logits: Tensor, reg_max: int = REG_MAX) -> Tensor:
    """Expected distances `[..., 4]` of logits `[..., 4 R]`, in strides."""
    probability = logits.unflatten(-1, (4, reg_max + 1)).softmax(-1)
    bins_R = torch.arange(reg_max + 1, dtype=logits.dtype, device=logits.device)
    return probability @ bins_R


class _ConvGN(nn.Module):
    def __init__(self, cin: int, cout: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, 3, padding=1, bias=False)
        self.gn = nn.GroupNorm(groups, cout)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.relu(self.gn(self.conv(x_BCHW)))


class _Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class _Integral(nn.Module):
    """Holds the bins, which the authors' checkpoints carry as a buffer."""

    def __init__(self, reg_max: int) -> None:
        super().__init__()
        self.register_buffer("project", torch.linspace(0, reg_max, reg_max + 1))


class GFLHead(nn.Module):
    """Classification and box branches shared by all levels, and the quality branch on the box distribution."""

    def __init__(
        self,
        classes: int,
        channels_in: int = 256,
        channels: int = 256,
        convs: int = 4,
        levels: int = 5,
        hidden: int = 64,
        groups: int = 32,
        reg_max: int = REG_MAX,
    ) -> None:
        super().__init__()
        self.reg_max = reg_max
        widths = [channels_in, *[channels] * convs]
        for branch in ("cls_convs", "reg_convs"):
            pairs = pairwise(widths)
            setattr(self, branch, nn.Sequential(*(_ConvGN(cin, cout, groups) for cin, cout in pairs)))
        self.gfl_cls = nn.Conv2d(channels, classes, 3, padding=1)
        self.gfl_reg = nn.Conv2d(channels, 4 * (reg_max + 1), 3, padding=1)
        self.scales = nn.ModuleList(_Scale() for _ in range(levels))
        self.reg_conf = nn.Sequential(
            nn.Conv2d(4 * (TOP_BINS + 1), hidden, 1), nn.ReLU(), nn.Conv2d(hidden, 1, 1), nn.Sigmoid()
        )
        self.integral = _Integral(reg_max)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.gfl_cls.bias, torch.tensor(PRIOR / (1 - PRIOR)).log().item())  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Per level the joint score `[B, K, H, W]` (class probability times quality) and box logits `[B, 4 R, H, W]`."""
        outputs = []
        for x_BCHW, scale in zip(features, self.scales, strict=True):
            logits = scale(self.gfl_reg(self.reg_convs(x_BCHW))).float()  # type: ignore[operator]
            # [B, 4, R, H, W]: how peaked the distribution of each side is
            top = logits.unflatten(1, (4, self.reg_max + 1)).softmax(2).topk(TOP_BINS, dim=2).values
            statistics = torch.cat([top, top.mean(2, keepdim=True)], dim=2).flatten(1, 2)
            score = self.gfl_cls(self.cls_convs(x_BCHW)).sigmoid() * self.reg_conf(statistics)  # type: ignore[operator]
            outputs.append((score, logits))
        return outputs
