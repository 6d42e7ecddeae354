"""Encoders by name, the model of pre-training and that of classification."""

from typing import Literal

import torch
from torch import Tensor, nn

from stages.hico.method.heads import Combine, HiCoHead
from stages.hico.method.residual import mixed_resnet18, r2plus1d10
from stages.hico.method.s3d_tiny import S3DTiny
from stages.hico.method.s3dg import S3DG

EncoderName = Literal["s3d-tiny", "s3dg", "r2plus1d10", "mixed-resnet18"]


def build_encoder(name: EncoderName) -> nn.Module:
    """An encoder; its `width` is the number of channels of its output."""
    match name:
        case "s3d-tiny":
            return S3DTiny()
        case "s3dg":
            return S3DG()
        case "r2plus1d10":
            return r2plus1d10()
        case "mixed-resnet18":
            return mixed_resnet18()


def pooled(encoder: nn.Module, x_NCTHW: Tensor) -> Tensor:
    """Features averaged over time and space, `[N, C]` in float32."""
    return encoder(x_NCTHW).float().mean((2, 3, 4))


class HiCoModel(nn.Module):
    """Encoder and heads."""

    def __init__(
        self, name: EncoderName, hidden: int, out: int, predictor: int, topic: bool, combine: Combine
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(name)
        width = int(self.encoder.width)  # type: ignore[arg-type]
        self.head = HiCoHead(width, hidden, out, predictor, topic, combine)

    def forward(self, x_NCTHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embeddings `[N, d]` and, with a topic head, pair logits `[N, N]`."""
        return self.head(pooled(self.encoder, x_NCTHW))


class VideoClassifier(nn.Module):
    """Encoder and a linear layer. In eval mode it gives probabilities, which views of a video may be averaged."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.out = nn.Linear(int(encoder.width), classes)  # type: ignore[arg-type]

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        """Features `[N, C, T, H, W]`."""
        logits_NK = self.out(pooled(self.encoder, x_NCTHW))
        return logits_NK if self.training else torch.softmax(logits_NK, -1)
