"""The Swin trunk with a mixer of choice in each stage, and ELSA-Swin T, S, B.

ELSA-Swin is Swin with every block of stages 1 to 3 replaced; stage 4 keeps window attention (card, "ELSA-Swin").
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.elsa.method.attention import ELSAAttention
from stages.elsa.method.block import Block, drop_path_rates
from stages.elsa.method.mixers import WindowAttention

MixerFactory = Callable[[int, int, int, int], nn.Module]  # (dim, heads, window, shift)


class PatchEmbed(nn.Module):
    """Non-overlapping patches as tokens, images padded to whole patches; `[B, 3, H, W]` to `[B, h, w, C]`."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(3, dim, patch_size, patch_size), nn.LayerNorm(dim)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Embed and normalise."""
        (patch, _), (height, width) = self.proj.kernel_size, x_BCHW.shape[-2:]
        x_BCHW = F.pad(x_BCHW, (0, -width % patch, 0, -height % patch))
        return self.norm(self.proj(x_BCHW).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Halves the map and doubles the channels; odd sizes are padded."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Concatenate the four pixels of each square, columns first."""
        x = F.pad(x_BHWC, (0, 0, 0, x_BHWC.shape[2] % 2, 0, x_BHWC.shape[1] % 2))
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class Stage(nn.Module):
    """Blocks of one size; `downsample` leads to the next stage."""

    def __init__(self, blocks: Sequence[Block], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks, self.downsample = nn.ModuleList(blocks), downsample


class SwinTransformer(nn.Module):
    """Hierarchical classifier, `[B, 3, H, W]` to `[B, classes]`.

    Args:
        mixers: one factory a stage, called with (dim, heads, window, shift) for each block.
        img_size: for which windows are fitted: on maps no larger than the window it is the map, without shift.
            None takes any size, as the detection backbone does: windows stay, and maps are padded.
        window_size: of attention windows; every second block is shifted by half.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0.
        init_std: of linear layers' weights; see `initialise`.
    """

    def __init__(
        self,
        mixers: Sequence[MixerFactory],
        img_size: int | None = 224,
        patch_size: int = 4,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        init_std: float | None = 0.02,
    ) -> None:
        super().__init__()
        self.dims = [embed_dim * 2**stage for stage in range(len(depths))]
        rates = iter(drop_path_rates(drop_path, sum(depths)))
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        stages = []
        for index, (dim, depth, heads) in enumerate(zip(self.dims, depths, num_heads, strict=True)):
            side = None if img_size is None else img_size // patch_size // 2**index
            fits = side is not None and side <= window_size
            window = side if side is not None and fits else window_size
            blocks = []
            for number in range(depth):
                shift = window // 2 if number % 2 and not fits else 0
                mixer = mixers[index](dim, heads, window, shift)
                blocks.append(Block(dim, mixer, mlp_ratio, next(rates)))
            last = index == len(depths) - 1
            stages.append(Stage(blocks, None if last else PatchMerging(dim)))
        self.layers = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(self.dims[-1])
        self.head = nn.Linear(self.dims[-1], num_classes)
        self.apply(partial(initialise, std=init_std))

    def features(self, x_BCHW: Tensor) -> list[Tensor]:
        """The map that leaves each stage, `[B, h, w, C]`, strides patch_size, x 2, x 4, x 8."""
        maps, x_BHWC = [], self.patch_embed(x_BCHW)
        for stage in self.layers:
            for block in stage.blocks:  # type: ignore[union-attr]
                x_BHWC = block(x_BHWC)
            maps.append(x_BHWC)
            if stage.downsample is not None:
                x_BHWC = stage.downsample(x_BHWC)  # type: ignore[operator]
        return maps

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.norm(self.features(x_BCHW)[-1]).mean((1, 2)))


def initialise(module: nn.Module, std: float | None = 0.02) -> None:
    """Linear layers from a truncated normal of deviation `std`; convolutions keep PyTorch's default (card).

    None is 1 / sqrt(inputs), which keeps the variance at any width. The authors' .02 is near that at their widths
    only: at 24 channels it takes a layer's output to a tenth, and two of them in a row hide a branch from the gradient.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5 if std is None else std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def window_mixer(dim: int, heads: int, window: int, shift: int) -> nn.Module:
    """Swin's own."""
    return WindowAttention(dim, heads, window, shift)


def elsa_mixer(
    dim: int, heads: int, window: int, shift: int, kernel_size: int = 7, group_width: int = 8,
    lam: float = 0.0, gamma: float = 1.0,
) -> nn.Module:  # fmt: skip
    """ELSA as ELSA-Swin uses it: additive ghost head only, biases, no window."""
    return ELSAAttention(
        dim, heads, kernel_size, qkv_bias=True, group_width=group_width, lam=lam, gamma=gamma
    )


def elsa_swin(
    embed_dim: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    group_width: int,
    elsa_kernel: int = 7,
    lam: float = 0.0,
    gamma: float = 1.0,
    elsa_stages: int = 3,
    **trunk: int | float | None,
) -> SwinTransformer:
    """ELSA in the first `elsa_stages` stages (all but the last if there are fewer), window attention after."""
    elsa = partial(elsa_mixer, kernel_size=elsa_kernel, group_width=group_width, lam=lam, gamma=gamma)
    count = min(elsa_stages, len(depths) - 1)
    mixers = [elsa] * count + [window_mixer] * (len(depths) - count)
    return SwinTransformer(
        mixers, embed_dim=embed_dim, depths=depths, num_heads=num_heads, **trunk  # type: ignore[arg-type]
    )  # fmt: skip


def elsa_swin_tiny(**options: int | float | None) -> SwinTransformer:
    """29.1 M parameters, 4.7 GMACs at 224; 82.7 % top-1 published. Stochastic depth .1."""
    return elsa_swin(96, (2, 2, 6, 2), (3, 6, 12, 24), 4, **options)  # type: ignore[arg-type]


def elsa_swin_small(**options: int | float | None) -> SwinTransformer:
    """52.9 M parameters, 9.5 GMACs at 224; 83.5 % top-1 published. Stochastic depth .3."""
    return elsa_swin(96, (2, 2, 18, 2), (3, 6, 12, 24), 8, **options)  # type: ignore[arg-type]


def elsa_swin_base(**options: int | float | None) -> SwinTransformer:
    """92.7 M parameters, 16.5 GMACs at 224; 84.0 % top-1 published (EMA weights). Stochastic depth .5."""
    return elsa_swin(128, (2, 2, 18, 2), (4, 8, 16, 32), 8, **options)  # type: ignore[arg-type]
