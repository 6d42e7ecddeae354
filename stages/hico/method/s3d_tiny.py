"""The encoder of the quick scale: four separable convolutions, for clips of 8 frames of 24 x 24 (card, "quick scale")."""

from torch import Tensor, nn

from stages.hico.method.s3dg import SeparableConv

WIDTHS = (16, 32, 48, 64)
STRIDES = ((1, 2), (1, 2), (2, 2), (2, 1))  # in time, in space


class S3DTiny(nn.Module):
    """Clips `[N, 3, T, H, W]` to features `[N, 64, T/4, H/8, W/8]`."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                SeparableConv(before, width, 3, stride)
                for before, width, stride in zip((3, *WIDTHS[:-1]), WIDTHS, STRIDES, strict=True)
            )
        )
        self.width = WIDTHS[-1]
        for module in self.modules():
            if isinstance(module, nn.Conv3d):  # so few channels need more than S3D-G's N(0, 0.01)
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        """Features `[N, C, T, H, W]`."""
        return self.blocks(x_NCTHW)
