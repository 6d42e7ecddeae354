"""S3D-G: separable 3-D Inception with feature gating, as HiCo uses it (card, "Network").

BN eps is 1e-3 in the separable convolutions and 1e-5 in the plain 1x1x1 units. Letters: N clips, C channels, T frames.
"""

import torch
from torch import Tensor, nn

SEPARABLE_EPS, PLAIN_EPS = 1e-3, 1e-5
# widths of b0; b1 reduced, b1; b2 reduced, b2; b3 after the max-pool
MIXED: dict[str, tuple[int, int, int, int, int, int]] = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}


class PlainUnit(nn.Module):
    """1x1x1 convolution, BN, ReLU."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(width_in, width, 1, bias=False)
        self.bn = nn.BatchNorm3d(width, eps=PLAIN_EPS)
        nn.init.normal_(self.conv.weight, std=0.01)

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        """Features `[N, C, T, H, W]`."""
        return torch.relu(self.bn(self.conv(x_NCTHW)))


class SeparableConv(nn.Module):
    """1 x k x k convolution, BN, ReLU, then k x 1 x 1 convolution, BN, ReLU."""

    def __init__(self, width_in: int, width: int, kernel: int, stride: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        pad, (time, space) = kernel // 2, stride
        self.conv1 = nn.Conv3d(
            width_in, width, (1, kernel, kernel), (1, space, space), (0, pad, pad), bias=False
        )
        self.bn1 = nn.BatchNorm3d(width, eps=SEPARABLE_EPS)
        self.conv2 = nn.Conv3d(width, width, (kernel, 1, 1), (time, 1, 1), (pad, 0, 0), bias=False)
        self.bn2 = nn.BatchNorm3d(width, eps=SEPARABLE_EPS)
        for conv in (self.conv1, self.conv2):
            nn.init.normal_(conv.weight, std=0.01)

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        """Features `[N, C, T, H, W]`."""
        x = torch.relu(self.bn1(self.conv1(x_NCTHW)))
        return torch.relu(self.bn2(self.conv2(x)))


class FeatureGate(nn.Module):
    """Scales every channel by a sigmoid of a linear map of the channel means."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        """Features `[N, C, T, H, W]`."""
        gate_NC = torch.sigmoid(self.fc(x_NCTHW.mean((2, 3, 4))))
        return gate_NC[:, :, None, None, None] * x_NCTHW


class InceptionBlock(nn.Module):
    """Four branches side by side, each gated before they are joined."""

    def __init__(
        self, width_in: int, widths: tuple[int, int, int, int, int, int], gating: bool = True
    ) -> None:
        super().__init__()
        b0, b1_in, b1, b2_in, b2, b3 = widths
        self.branch0 = nn.Sequential(PlainUnit(width_in, b0))
        self.branch1 = nn.Sequential(PlainUnit(width_in, b1_in), SeparableConv(b1_in, b1, 3))
        self.branch2 = nn.Sequential(PlainUnit(width_in, b2_in), SeparableConv(b2_in, b2, 3))
        self.branch3 = nn.Sequential(nn.MaxPool3d(3, 1, 1), PlainUnit(width_in, b3))
        gates = (FeatureGate(width) if gating else nn.Identity() for width in (b0, b1, b2, b3))
        self.gating_b0, self.gating_b1, self.gating_b2, self.gating_b3 = gates
        self.width = b0 + b1 + b2 + b3

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        """Features `[N, C, T, H, W]`."""
        parts = (
            self.gating_b0(self.branch0(x_NCTHW)),
            self.gating_b1(self.branch1(x_NCTHW)),
            self.gating_b2(self.branch2(x_NCTHW)),
            self.gating_b3(self.branch3(x_NCTHW)),
        )
        return torch.cat(parts, 1)


class S3DG(nn.Module):
    """Clips `[N, 3, T, H, W]` to features `[N, 1024, T', H', W']`; `width` scales all channels.

    Layers are named as in the official checkpoints, in lower case.
    """

    def __init__(self, width: float = 1.0, gating: bool = True) -> None:
        super().__init__()

        def scaled(value: int) -> int:
            return max(1, round(value * width))

        self.conv_1a = SeparableConv(3, scaled(64), 7, (2, 2))
        self.conv_2b = PlainUnit(scaled(64), scaled(64))
        self.conv_2c = SeparableConv(scaled(64), scaled(192), 3)
        self.pool_space = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.pool_4a = nn.MaxPool3d(3, 2, 1)
        self.pool_5a = nn.MaxPool3d(2, 2)
        before = scaled(192)
        for name, widths in MIXED.items():
            b0, b1_in, b1, b2_in, b2, b3 = map(scaled, widths)
            block = InceptionBlock(before, (b0, b1_in, b1, b2_in, b2, b3), gating)
            self.add_module(f"mixed_{name}", block)
            before = block.width
        self.width = before

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        """Features `[N, C, T, H, W]`."""
        x = self.pool_space(self.conv_1a(x_NCTHW))
        x = self.pool_space(self.conv_2c(self.conv_2b(x)))
        for name in MIXED:
            if name == "4b":
                x = self.pool_4a(x)
            elif name == "5b":
                x = self.pool_5a(x)
            x = self.get_submodule(f"mixed_{name}")(x)
        return x
