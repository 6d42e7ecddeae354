"""What a latent is predicted from beside z: the latents that the decoder has already.

Serial models go position by position in raster order, two-pass models in two halves of a checkerboard. Every model
maps quantised latents `[B, S, h, w]` to features `[B, D, h, w]` that depend on what is known at that point only.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.entroformer.method.attention import (
    AttentionSpec,
    BlockCache,
    TransformerStack,
    causal_layout,
    checkerboard,
    checkerboard_layout,
    initialise_linear,
    to_grid,
    to_tokens,
    visible_layout,
)
from stages.entroformer.method.transforms import initialise_convolution

CONTEXT_KERNEL = 5


def random_visible(h: int, w: int, generator: torch.Generator, mask_ratio: float = 0.5) -> Tensor:
    """Pre-training's first pass: each position with probability 1 - mask_ratio."""
    return torch.rand(h, w, generator=generator) >= mask_ratio


class SerialDecoding(Protocol):
    """Features one position after another."""

    def feature(self, y_BShw: Tensor, row: int, column: int) -> Tensor:
        """Feature `[B, D]` of a position; `y_BShw` holds what is decoded, zero elsewhere. Call in raster order."""
        ...


class SerialContext(nn.Module):
    """The causal transformer: the output at a position is moved to the next, a learned token stands first."""

    def __init__(self, latents: int, spec: AttentionSpec, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(latents, spec.dim)
        self.stack = TransformerStack(spec, depth)
        self.start_11D = nn.Parameter(torch.randn(1, 1, spec.dim))
        initialise_linear(self.embed)

    def forward(self, y_BShw: Tensor, topk: int | None = None) -> Tensor:
        """Features of all positions at once, as training and encoding know all latents."""
        h, w = y_BShw.shape[2:]
        layout = causal_layout(h, w, self.stack.spec.position_num, self.stack.spec.position)
        t_BnD = self.stack(self.embed(to_tokens(y_BShw)), layout, topk)
        shifted = torch.cat([self.start_11D.expand(len(t_BnD), -1, -1), t_BnD[:, :-1]], 1)
        return to_grid(shifted, h, w)

    def decoding(self, h: int, w: int) -> SerialDecoding:
        """Decoding of one grid, with keys and values kept."""
        return _CachedDecoding(self, h, w)


class _CachedDecoding:
    def __init__(self, context: SerialContext, h: int, w: int) -> None:
        self.context, self.w = context, w
        self.caches = [BlockCache(h * w) for _ in context.stack.blocks]
        self.layout = causal_layout(h, w, context.stack.spec.position_num, context.stack.spec.position)

    def feature(self, y_BShw: Tensor, row: int, column: int) -> Tensor:
        position = row * self.w + column
        if position == 0:
            return self.context.start_11D[:, 0].expand(len(y_BShw), -1)
        last_row, last_column = divmod(position - 1, self.w)
        token_B1D = self.context.embed(y_BShw[:, None, :, last_row, last_column])
        return self.context.stack.step(token_B1D, self.caches, self.layout)[:, 0]


class MaskedConvContext(nn.Module):
    """A 5x5 convolution over the positions before this one in raster order (Minnen et al. 2018)."""

    before_55: Tensor

    def __init__(self, latents: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(latents, dim, CONTEXT_KERNEL, padding=CONTEXT_KERNEL // 2)
        before = torch.zeros(CONTEXT_KERNEL**2)
        before[: CONTEXT_KERNEL**2 // 2] = 1
        self.register_buffer("before_55", before.view(CONTEXT_KERNEL, CONTEXT_KERNEL), persistent=False)
        initialise_convolution(self.conv)

    def forward(self, y_BShw: Tensor, topk: int | None = None) -> Tensor:
        """Features of all positions at once."""
        return F.conv2d(
            y_BShw, self.conv.weight * self.before_55, self.conv.bias, padding=CONTEXT_KERNEL // 2
        )

    def decoding(self, h: int, w: int) -> SerialDecoding:
        """Decoding of one grid, each position from its own 5x5 patch."""
        return _PatchDecoding(self)


class _PatchDecoding:
    def __init__(self, context: MaskedConvContext) -> None:
        # positions that are not decoded yet are zero, but the products with them need not be computed
        self.weight = (context.conv.weight * context.before_55).flatten(1)
        self.bias = context.conv.bias

    def feature(self, y_BShw: Tensor, row: int, column: int) -> Tensor:
        reach = CONTEXT_KERNEL // 2
        h, w = y_BShw.shape[2:]
        top, left = max(0, row - reach), max(0, column - reach)
        patch = y_BShw[:, :, top : row + reach + 1, left : column + reach + 1]
        missing = (left - column + reach, column + reach + 1 - w, top - row + reach, row + reach + 1 - h)
        return F.linear(F.pad(patch, [max(0, m) for m in missing]).flatten(1), self.weight, self.bias)


class BidirectionalContext(nn.Module):
    """The two-pass transformer: the visible half is predicted from z alone, the other half from all of the visible one."""

    def __init__(self, latents: int, spec: AttentionSpec, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(latents, spec.dim)
        self.stack = TransformerStack(spec, depth)
        initialise_linear(self.embed)

    def forward(self, y_BShw: Tensor, topk: int | None = None, visible_hw: Tensor | None = None) -> Tensor:
        """Features, zero at visible positions. `visible_hw`: the checkerboard where not given."""
        h, w = y_BShw.shape[2:]
        num, position = self.stack.spec.position_num, self.stack.spec.position
        if visible_hw is None:
            visible_hw, layout = checkerboard(h, w), checkerboard_layout(h, w, num, position)
        else:
            layout = visible_layout(visible_hw, num, position)
        shown = visible_hw.to(y_BShw.device)
        t_BnD = self.stack(self.embed(to_tokens(y_BShw * shown)), layout, topk)
        return to_grid(t_BnD, h, w) * ~shown


class CheckerboardConvContext(nn.Module):
    """A 5x5 convolution over the visible half of the checkerboard (He et al. 2021)."""

    def __init__(self, latents: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(latents, dim, CONTEXT_KERNEL, padding=CONTEXT_KERNEL // 2)
        initialise_convolution(self.conv)

    def forward(self, y_BShw: Tensor, topk: int | None = None, visible_hw: Tensor | None = None) -> Tensor:
        """Features, zero at visible positions."""
        shown = (checkerboard(*y_BShw.shape[2:]) if visible_hw is None else visible_hw).to(y_BShw.device)
        return self.conv(y_BShw * shown) * ~shown
