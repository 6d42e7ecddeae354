"""A trunk as the backbone of detection and segmentation: normalised maps of all stages, images of any size."""

from collections.abc import Sequence

from torch import Tensor, nn

from stages.elsa.method.swin import SwinTransformer


class DenseBackbone(nn.Module):
    """`[B, 3, H, W]` to `{"0": [B, C, H/4, W/4], ...}`, a LayerNorm per map: what torchvision's FPN takes.

    Args:
        trunk: built with `img_size=None`; its classifier is dropped.
        out_indices: stages whose maps are given.
    """

    def __init__(self, trunk: SwinTransformer, out_indices: Sequence[int] = (0, 1, 2, 3)) -> None:
        super().__init__()
        self.trunk, self.out_indices = trunk, tuple(out_indices)
        trunk.norm = trunk.head = nn.Identity()  # type: ignore[assignment]
        self.out_channels = [trunk.dims[index] for index in self.out_indices]
        for index in self.out_indices:
            self.add_module(f"norm{index}", nn.LayerNorm(trunk.dims[index]))

    def forward(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        """Maps by stage number."""
        maps = self.trunk.features(x_BCHW)
        return {
            str(index): self.get_submodule(f"norm{index}")(maps[index]).permute(0, 3, 1, 2).contiguous()
            for index in self.out_indices
        }
