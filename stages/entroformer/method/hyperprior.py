"""Side information z and what is predicted from it: a transformer with resampling (paper), or convolutions (Balle et al.).

Encoders: `[B, S, h, w]` -> `[B, Z, h/4, w/4]`; decoders: `[B, Z, h/4, w/4]` -> `[B, D, h, w]`.
"""

from dataclasses import replace

from torch import Tensor, nn

from stages.entroformer.method.attention import (
    AttentionSpec,
    TransformerStack,
    full_layout,
    initialise_linear,
    to_grid,
    to_tokens,
)
from stages.entroformer.method.transforms import initialise_convolution

RESAMPLINGS = 2
SMALLEST_POSITION_NUM, SMALLEST_TOPK = 5, 2


def stage_specs(spec: AttentionSpec) -> list[AttentionSpec]:
    """The encoder's three stages from fine to coarse: fewer positions and fewer keys where the grid is smaller."""
    specs, num, k = [], spec.position_num, spec.topk
    for _ in range(RESAMPLINGS + 1):
        specs.append(replace(spec, position_num=num, topk=k))
        num = max(SMALLEST_POSITION_NUM, num // 2 + (num // 2 + 1) % 2)
        k = k if k < 0 else max(SMALLEST_TOPK, k // 2)
    return specs


class _Stages(nn.Module):
    """Three stacks of depth / 2 / 3 blocks; the number of keys in each follows the one drawn for the finest."""

    def __init__(self, specs: list[AttentionSpec], depth: int) -> None:
        super().__init__()
        self.stacks = nn.ModuleList(TransformerStack(s, max(1, depth // 2 // len(specs))) for s in specs)

    def run(self, stage: int, x_BDhw: Tensor, topk: int | None) -> Tensor:
        """One stage over its grid."""
        stack: TransformerStack = self.stacks[stage]  # type: ignore[assignment]
        h, w = x_BDhw.shape[2:]
        layout = full_layout(h, w, stack.spec.position_num, stack.spec.position)
        return to_grid(stack(to_tokens(x_BDhw), layout, topk), h, w)


def stage_topk(topk: int | None, halvings: int) -> int | None:
    """The number of keys after so many halvings; None (the specification's) and -1 (all) stay."""
    for _ in range(halvings):
        topk = topk if topk is None or topk < 0 else max(SMALLEST_TOPK, topk // 2)
    return topk


class TransformerHyperEncoder(_Stages):
    """Linear, then three stages with strided convolutions between them, LayerNorm, linear."""

    def __init__(self, latents: int, hyper: int, spec: AttentionSpec, depth: int) -> None:
        super().__init__(stage_specs(spec), depth)
        self.embed = nn.Linear(latents, spec.dim)
        self.down = nn.ModuleList(nn.Conv2d(spec.dim, spec.dim, 3, 2, 1) for _ in range(RESAMPLINGS))
        self.head = nn.Sequential(nn.LayerNorm(spec.dim), nn.Linear(spec.dim, hyper))
        for layer in (self.embed, self.head[1]):
            initialise_linear(layer)
        self.down.apply(initialise_convolution)

    def forward(self, y_BShw: Tensor, topk: int | None = None) -> Tensor:
        """Unquantised latents to z."""
        x_BDhw = to_grid(self.embed(to_tokens(y_BShw)), *y_BShw.shape[2:])
        for stage in range(RESAMPLINGS + 1):
            if stage:
                x_BDhw = self.down[stage - 1](x_BDhw)
            x_BDhw = self.run(stage, x_BDhw, stage_topk(topk, stage))
        return to_grid(self.head(to_tokens(x_BDhw)), *x_BDhw.shape[2:])


class TransformerHyperDecoder(_Stages):
    """Linear, then three stages with convolution and pixel shuffle between them."""

    def __init__(self, hyper: int, spec: AttentionSpec, depth: int) -> None:
        super().__init__(stage_specs(spec)[::-1], depth)
        self.embed = nn.Linear(hyper, spec.dim)
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(spec.dim, 4 * spec.dim, 3, 1, 1), nn.PixelShuffle(2))
            for _ in range(RESAMPLINGS)
        )
        initialise_linear(self.embed)
        self.up.apply(initialise_convolution)

    def forward(self, z_BZhw: Tensor, topk: int | None = None) -> Tensor:
        """Quantised z to the feature of every latent position."""
        x_BDhw = to_grid(self.embed(to_tokens(z_BZhw)), *z_BZhw.shape[2:])
        for stage in range(RESAMPLINGS + 1):
            if stage:
                x_BDhw = self.up[stage - 1](x_BDhw)
            x_BDhw = self.run(stage, x_BDhw, stage_topk(topk, RESAMPLINGS - stage))
        return x_BDhw


class ConvHyperEncoder(nn.Module):
    """Three convolutions, the last two of stride 2."""

    def __init__(self, latents: int, hyper: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(latents, dim, 3, 1, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(dim, dim, 5, 2, 2), nn.LeakyReLU(0.2),
            nn.Conv2d(dim, hyper, 5, 2, 2),
        )  # fmt: skip
        self.apply(initialise_convolution)

    def forward(self, y_BShw: Tensor, topk: int | None = None) -> Tensor:
        """Unquantised latents to z."""
        return self.layers(y_BShw)


class ConvHyperDecoder(nn.Module):
    """Two transposed convolutions of stride 2 and a convolution."""

    def __init__(self, hyper: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(hyper, dim, 5, 2, 2, output_padding=1), nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(dim, dim, 5, 2, 2, output_padding=1), nn.LeakyReLU(0.2),
            nn.Conv2d(dim, dim, 3, 1, 1),
        )  # fmt: skip
        self.apply(initialise_convolution)

    def forward(self, z_BZhw: Tensor, topk: int | None = None) -> Tensor:
        """Quantised z to the feature of every latent position."""
        return self.layers(z_BZhw)
