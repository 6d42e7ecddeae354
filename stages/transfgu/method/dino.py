"""DINO: self-distillation without labels (Caron et al., ICCV 2021, arXiv 2104.14294), in batched tensors.

A student sees all crops of an image and predicts what a momentum teacher says of its global crops; the teacher's
outputs are centred and sharpened so that they do not collapse.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

STUDENT_TEMPERATURE = 0.1
CENTRE_MOMENTUM = 0.9


class DINOHead(nn.Module):
    """Three-layer MLP, L2 normalisation, prototypes of unit length (weight-normalised, `weight_g` fixed at 1)."""

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Linear(bottleneck, prototypes, bias=False)

    def forward(self, x_BD: Tensor) -> Tensor:
        """`[B, D]` -> cosines with the prototypes `[B, P]`."""
        return F.normalize(self.mlp(x_BD), dim=-1) @ F.normalize(self.prototypes.weight, dim=-1).T


class DINOLoss(nn.Module):
    """Cross-entropy of student views against the teacher's other global views; keeps the teacher's centre."""

    centre: Tensor

    def __init__(self, prototypes: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(1, prototypes))

    def forward(self, student_VBP: Tensor, teacher_GBP: Tensor, temperature: float) -> Tensor:
        """Mean over pairs of a global view and another view. Views: global ones first, in the same order."""
        q_GBP = ((teacher_GBP - self.centre) / temperature).softmax(-1)
        s_VBP = (student_VBP / STUDENT_TEMPERATURE).log_softmax(-1)
        pairs = [
            -(q_GBP[i] * s_VBP[v]).sum(-1).mean()
            for i in range(len(q_GBP))
            for v in range(len(s_VBP))
            if v != i
        ]
        with torch.no_grad():
            mean_1P = teacher_GBP.flatten(0, 1).mean(0, keepdim=True)
            self.centre = CENTRE_MOMENTUM * self.centre + (1 - CENTRE_MOMENTUM) * mean_1P
        return torch.stack(pairs).mean()


def cosine(start: float, end: float, progress: float) -> float:
    """From `start` at progress 0 to `end` at 1."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))


def teacher_temperature(start: float, end: float, step: float, warmup: float) -> float:
    """Linear over the warm-up, then constant."""
    return end if step >= warmup else start + (end - start) * step / max(1.0, warmup)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Exponential moving average of the student."""
    mine, other = ([p.detach() for p in module.parameters()] for module in (teacher, student))
    torch._foreach_mul_(mine, momentum)
    torch._foreach_add_(mine, other, alpha=1 - momentum)


def random_windows(x_BCHW: Tensor, scales: Sequence[float], size: int, generator: Generator) -> Tensor:
    """A square window of each image, at a random place, resized to `[B, 3, size, size]`.

    Its side is one of `scales`, a share of the image's shorter side, as the windows of the class-token bank are.
    """
    batch, (height, width) = len(x_BCHW), x_BCHW.shape[-2:]
    chosen_B = torch.randint(len(scales), (batch,), generator=generator)
    side_B1 = torch.tensor(scales)[chosen_B, None] * min(height, width)
    share_B2 = side_B1 / torch.tensor([width, height])
    centre_B2 = (2 * torch.rand(batch, 2, generator=generator) - 1) * (1 - share_B2)
    theta_B23 = torch.cat([torch.diag_embed(share_B2), centre_B2[:, :, None]], 2).to(x_BCHW.device)
    grid_BHW2 = F.affine_grid(theta_B23, [batch, x_BCHW.shape[1], size, size], align_corners=False)
    return F.grid_sample(x_BCHW, grid_BHW2, padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class MultiCropAugment:
    """Global and local crops of a batch, each at a random place, size, mirroring, rotation and colour.

    Sizes in pixels; scales are shares of the image's area; `rotate` in degrees; `brightness`, `contrast` and
    `saturation` are the largest relative changes; `grey` the share of crops without colour.
    """

    global_size: int
    local_size: int
    locals: int
    global_scale: tuple[float, float]
    local_scale: tuple[float, float]
    rotate: float = 0.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    grey: float = 0.0

    def __call__(self, x_BCHW: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Images in 0..1 -> global crops `[2, B, 3, g, g]` and local crops `[L, B, 3, l, l]`."""
        wide = [self._crop(x_BCHW, self.global_size, self.global_scale, generator) for _ in range(2)]
        near = [self._crop(x_BCHW, self.local_size, self.local_scale, generator) for _ in range(self.locals)]
        return torch.stack(wide), torch.stack(near)

    def _crop(self, x_BCHW: Tensor, size: int, scale: tuple[float, float], generator: Generator) -> Tensor:
        batch, device = len(x_BCHW), x_BCHW.device

        def draw(low: float, high: float) -> Tensor:
            return (low + (high - low) * torch.rand(batch, generator=generator)).to(device)

        ratio_B = draw(math.log(3 / 4), math.log(4 / 3)).exp().sqrt()
        side_B = draw(*scale).sqrt()
        width_B, height_B = (side_B * ratio_B).clamp(max=1), (side_B / ratio_B).clamp(max=1)
        left_B, top_B = draw(-1, 1) * (1 - width_B), draw(-1, 1) * (1 - height_B)
        flip_B = torch.where(draw(0, 1) < 0.5, -1.0, 1.0)
        angle_B = draw(-self.rotate, self.rotate) * math.pi / 180
        rows = [
            torch.stack([flip_B * width_B * angle_B.cos(), -height_B * angle_B.sin(), left_B], 1),
            torch.stack([flip_B * width_B * angle_B.sin(), height_B * angle_B.cos(), top_B], 1),
        ]
        shape = [batch, x_BCHW.shape[1], size, size]
        grid_BHW2 = F.affine_grid(torch.stack(rows, 1), shape, align_corners=False)
        crop_BCHW = F.grid_sample(x_BCHW, grid_BHW2, padding_mode="reflection", align_corners=False)
        return self._colour(crop_BCHW, draw)

    def _colour(self, x_BCHW: Tensor, draw: Callable[[float, float], Tensor]) -> Tensor:
        def factor(strength: float) -> Tensor:
            return draw(1 - strength, 1 + strength)[:, None, None, None]

        x_BCHW = x_BCHW * factor(self.brightness)
        mean_B111 = x_BCHW.mean((1, 2, 3), keepdim=True)
        x_BCHW = mean_B111 + (x_BCHW - mean_B111) * factor(self.contrast)
        grey_B1HW = x_BCHW.mean(1, keepdim=True)
        colour_B111 = factor(self.saturation) * (draw(0, 1) >= self.grey)[:, None, None, None]
        return (grey_B1HW + (x_BCHW - grey_B1HW) * colour_B111).clamp(0, 1)
