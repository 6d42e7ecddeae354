"""Top-k self-attention with a diamond relative position encoding (paper, sections 3.1 and 3.2).

Shapes: B batch, n tokens of an h x w grid in raster order, m keys, a heads, d width of a head, D width of a token,
P entries of a position table.

s_ij = scale * (q_i . k_j + q_i . r_b(i,j)); of every row only the k largest scores survive the softmax.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor, nn

# Scores this close to the k-th largest count as tied with it, and ties are kept: where tokens are equal, as in flat areas,
# rounding must not choose among them. Files are coded with sums that do not round (exact.py).
TIE = 1e-9
INITIAL_STD = 0.02  # of linear layers, cut at +-2


@dataclass(frozen=True)
class AttentionSpec:
    """Sizes of a transformer stack.

    `topk` -1 is dense attention. `score_scale`: "embed" divides scores by sqrt(dim), as the released weights were
    trained; "head" by sqrt(dim_head). `position`: "diamond", "square" (no far vector but the border's), "absolute"
    (learned, added to the tokens) or "none".
    """

    dim: int
    heads: int
    dim_head: int
    mlp_ratio: int
    position_num: int
    topk: int
    position: str = "diamond"
    score_scale: str = "embed"

    @property
    def scale(self) -> float:
        """What scores are multiplied by."""
        return float((self.dim if self.score_scale == "embed" else self.dim_head) ** -0.5)


def diamond_bucket_index(h: int, w: int, num: int, shape: str = "diamond") -> Tensor:
    """Which of the num^2 position vectors each (query, key) pair of a grid takes: int64 `[n, n]`.

    Offsets inside the L1 ball of radius num // 2 have a vector each; all others share entry 0, a corner outside the
    ball. For "square" the ball is that of the largest component, and what is outside takes the nearest entry.
    """
    radius = num // 2
    row_n, column_n = (
        grid.flatten() for grid in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    )
    dv_nn, dh_nn = row_n[None] - row_n[:, None], column_n[None] - column_n[:, None]
    if shape == "square":
        dv_nn, dh_nn = dv_nn.clamp(-radius, radius), dh_nn.clamp(-radius, radius)
    index_nn = (dv_nn + radius) * num + dh_nn + radius
    if shape == "square":
        return index_nn
    return torch.where(dv_nn.abs() + dh_nn.abs() <= radius, index_nn, 0)


@dataclass(frozen=True)
class Layout:
    """Who may attend to whom on one grid.

    `keys_m` are the tokens that serve as keys (None: all); with `own` every query also sees itself, as one more
    column. `bucket_nm` picks the position vector, `mask_nm` says what is allowed (None: everything).
    """

    shape: tuple[int, int]
    bucket_nm: Tensor
    mask_nm: Tensor | None = None
    keys_m: Tensor | None = None
    own: bool = False

    def to(self, device: torch.device) -> "Layout":
        """The same on another device."""
        if self.bucket_nm.device == device:
            return self
        mask, keys = (None if t is None else t.to(device) for t in (self.mask_nm, self.keys_m))
        return Layout(self.shape, self.bucket_nm.to(device), mask, keys, self.own)

    @cached_property
    def near(self) -> tuple[Tensor, Tensor]:
        """Of each query the keys whose position vector is not entry 0, and their entries: two int64 `[n, N]`.

        Rows with fewer than N repeat one of them; a row with none names key 0, with the entry that it has.
        """
        row, column = self.bucket_nm.nonzero(as_tuple=True)
        count_n = row.bincount(minlength=len(self.bucket_nm))
        start_n1 = (count_n.cumsum(0) - count_n)[:, None]
        place_N = torch.arange(int(count_n.max()), device=row.device)
        which_nN = start_n1 + torch.where(place_N < count_n[:, None], place_N, 0)
        column = torch.cat([column, column.new_zeros(1)])  # behind the last row's, for rows with none
        column_nN = torch.where(count_n[:, None] > 0, column[which_nN], 0)
        return column_nN, self.bucket_nm.gather(1, column_nN)


@cache
def full_layout(h: int, w: int, num: int, position: str = "diamond") -> Layout:
    """Every token sees every token."""
    return Layout((h, w), diamond_bucket_index(h, w, num, position))


@cache
def causal_layout(h: int, w: int, num: int, position: str = "diamond") -> Layout:
    """A token sees itself and those before it in raster order; the context model shifts the output afterwards."""
    return Layout((h, w), diamond_bucket_index(h, w, num, position), torch.ones(h * w, h * w).tril().bool())


@cache
def checkerboard_layout(h: int, w: int, num: int, position: str = "diamond") -> Layout:
    """`visible_layout` of the checkerboard."""
    return visible_layout(checkerboard(h, w), num, position)


def checkerboard(h: int, w: int) -> Tensor:
    """The first pass: positions whose row + column is odd; bool `[h, w]`."""
    return (torch.arange(h)[:, None] + torch.arange(w)[None]) % 2 == 1


def visible_layout(visible_hw: Tensor, num: int, position: str = "diamond") -> Layout:
    """Every token sees the visible ones and itself.

    Keys are the visible tokens only, which halves scores and top-k on a checkerboard; "itself" is a column of its
    own, and visible queries, which are among the keys, do not get it twice.
    """
    h, w = visible_hw.shape
    keys_m = visible_hw.flatten().nonzero()[:, 0]
    bucket_nm = diamond_bucket_index(h, w, num, position)[:, keys_m]
    own_n1 = ~visible_hw.flatten()[:, None]
    mask_nm = torch.cat([torch.ones(h * w, len(keys_m), dtype=torch.bool), own_n1], 1)
    return Layout((h, w), bucket_nm, mask_nm, keys_m, own=True)


def topk_softmax(scores: Tensor, k: int) -> Tensor:
    """Softmax over the k largest entries of the last axis, ties at the threshold included; k = -1: over all."""
    if k > 0 and k < scores.shape[-1]:
        threshold = scores.detach().topk(k, sorted=False).values.amin(-1, keepdim=True)
        # an entry that is masked already is below every allowed one and stays out: its weight is exp(-huge) = 0
        scores = torch.where(scores.detach() < threshold - TIE, torch.finfo(scores.dtype).min, scores)
    return scores.softmax(-1)


class SelfAttention(nn.Module):
    """The attention of one block. `table_Pd`, the position vectors, belongs to the stack: its layers share it."""

    output: nn.Module

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__()
        self.spec = spec
        inner = spec.heads * spec.dim_head
        self.query, self.key, self.value = (nn.Linear(spec.dim, inner, bias=False) for _ in range(3))
        self.output = nn.Linear(inner, spec.dim, bias=False)

    def split(self, x_BnD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each `[B, a, n, d]`."""
        spec = self.spec
        return tuple(
            project(x_BnD).unflatten(-1, (spec.heads, spec.dim_head)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )

    def weights(
        self, q_Band: Tensor, k_Band: Tensor, layout: Layout, table_Pd: Tensor | None, topk: int
    ) -> Tensor:
        """Attention weights `[B, a, n, m]`, one more column with `layout.own`."""
        keys_Bamd = k_Band if layout.keys_m is None else k_Band[:, :, layout.keys_m]
        scores = q_Band @ keys_Bamd.transpose(-1, -2)
        own = (q_Band * k_Band).sum(-1, keepdim=True) if layout.own else None
        if table_Pd is not None:
            # all P products of every query, then a gather: n x P numbers instead of n x n x d
            relative_BanP = q_Band @ table_Pd.T
            scores = scores + relative_BanP.gather(-1, layout.bucket_nm.expand_as(scores))
            if own is not None:
                centre = len(table_Pd) // 2
                own = own + relative_BanP[..., centre : centre + 1]
        if own is not None:
            scores = torch.cat([scores, own], -1)
        scores = scores * self.spec.scale
        if layout.mask_nm is not None:
            # the lowest number, never -infinity; its weight and so its gradient are zero
            scores = scores + (~layout.mask_nm).to(scores.dtype) * torch.finfo(scores.dtype).min
        return topk_softmax(scores, topk)

    def forward(self, x_BnD: Tensor, layout: Layout, table_Pd: Tensor | None, topk: int) -> Tensor:
        """Attention over one grid."""
        return self.merge(self.attend(*self.split(x_BnD), layout, table_Pd, topk))

    def attend(
        self,
        q_Band: Tensor,
        k_Band: Tensor,
        v_Band: Tensor,
        layout: Layout,
        table_Pd: Tensor | None,
        topk: int,
    ) -> Tensor:
        """Weighted values of every query: `[B, a, n, d]`."""
        weights = self.weights(q_Band, k_Band, layout, table_Pd, topk)
        values = v_Band if layout.keys_m is None else v_Band[:, :, layout.keys_m]
        return weights[..., :-1] @ values + weights[..., -1:] * v_Band if layout.own else weights @ values

    def merge(self, values_Band: Tensor) -> Tensor:
        """Heads side by side, projected: `[B, n, D]`."""
        return self.output(values_Band.transpose(1, 2).flatten(2))


class AttentionBlock(nn.Module):
    """t + Attention(LN(t)), then t + MLP(LN(t)); the MLP's activation is LeakyReLU 0.2."""

    def __init__(self, spec: AttentionSpec) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(spec.dim), nn.LayerNorm(spec.dim)
        self.attention = SelfAttention(spec)
        wide = spec.dim * spec.mlp_ratio
        self.mlp = nn.Sequential(nn.Linear(spec.dim, wide), nn.LeakyReLU(0.2), nn.Linear(wide, spec.dim))

    def forward(self, t_BnD: Tensor, layout: Layout, table_Pd: Tensor | None, topk: int) -> Tensor:
        """One block over one grid."""
        t_BnD = t_BnD + self.attention(self.attention_norm(t_BnD), layout, table_Pd, topk)
        return t_BnD + self.mlp(self.mlp_norm(t_BnD))

    def step(
        self, t_B1D: Tensor, cache: "BlockCache", layout: Layout, table_Pd: Tensor | None, topk: int
    ) -> Tensor:
        """One block for the next token alone; `layout` has the one row of that token."""
        q_Ba1d, k_Ba1d, v_Ba1d = self.attention.split(self.attention_norm(t_B1D))
        k_Band, v_Band = cache.append(k_Ba1d, v_Ba1d)
        values_Ba1d = self.attention.attend(q_Ba1d, k_Band, v_Band, layout, table_Pd, topk)
        t_B1D = t_B1D + self.attention.merge(values_Ba1d)
        return t_B1D + self.mlp(self.mlp_norm(t_B1D))


class BlockCache:
    """Keys and values of the tokens that have been seen, for one block."""

    def __init__(self, length: int) -> None:
        self.length, self.used = length, 0
        self.kept: tuple[Tensor, Tensor] | None = None

    def append(self, k_Ba1d: Tensor, v_Ba1d: Tensor) -> tuple[Tensor, Tensor]:
        """Add one token; returns all keys and values so far."""
        if self.kept is None:
            b, a, _, d = k_Ba1d.shape
            self.kept = k_Ba1d.new_empty(b, a, self.length, d), k_Ba1d.new_empty(b, a, self.length, d)
        keys, values = self.kept
        keys[:, :, self.used], values[:, :, self.used] = k_Ba1d[:, :, 0], v_Ba1d[:, :, 0]
        self.used += 1
        return keys[:, :, : self.used], values[:, :, : self.used]


class TransformerStack(nn.Module):
    """Blocks that share one table of position vectors."""

    def __init__(self, spec: AttentionSpec, depth: int, max_tokens: int = 4096) -> None:
        super().__init__()
        self.spec = spec
        self.blocks = nn.ModuleList(AttentionBlock(spec) for _ in range(depth))
        self.table_Pd: nn.Parameter | None = None
        self.absolute_nD: nn.Parameter | None = None
        if spec.position in ("diamond", "square"):
            self.table_Pd = nn.Parameter(torch.randn(spec.position_num**2, spec.dim_head))
        if spec.position == "absolute":
            self.absolute_nD = nn.Parameter(INITIAL_STD * torch.randn(max_tokens, spec.dim))
        self.apply(initialise_linear)

    def training_topk(self, draw: Callable[[int, int], int]) -> int:
        """k of one training step, uniform in {k // 2, ..., 2k - 1}; `draw(low, high)` is an integer below high."""
        k = self.spec.topk
        return k if k < 2 else draw(k // 2, 2 * k)

    def forward(self, t_BnD: Tensor, layout: Layout, topk: int | None = None) -> Tensor:
        """All blocks over one grid; `topk` other than the specification's in training."""
        layout = layout.to(t_BnD.device)
        if self.absolute_nD is not None:
            t_BnD = t_BnD + self.absolute_nD[: t_BnD.shape[1]]
        for block in self.blocks:
            t_BnD = block(t_BnD, layout, self.table_Pd, self.spec.topk if topk is None else topk)
        return t_BnD

    def step(self, t_B1D: Tensor, caches: list[BlockCache], layout: Layout) -> Tensor:
        """All blocks for token number `caches[0].used` of a causal `layout`."""
        position = caches[0].used
        row = Layout(layout.shape, layout.bucket_nm[position : position + 1, : position + 1])
        if self.absolute_nD is not None:
            t_B1D = t_B1D + self.absolute_nD[position]
        for block, cache_ in zip(self.blocks, caches, strict=True):
            t_B1D = block.step(t_B1D, cache_, row, self.table_Pd, self.spec.topk)  # type: ignore[operator]
        return t_B1D


def initialise_linear(module: nn.Module) -> None:
    """Truncated normal weights and zero biases, as the authors start."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INITIAL_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def to_tokens(x_BChw: Tensor) -> Tensor:
    """Grid to raster sequence: `[B, C, h, w]` -> `[B, n, C]`."""
    return x_BChw.flatten(2).transpose(1, 2)


def to_grid(t_BnC: Tensor, h: int, w: int) -> Tensor:
    """Raster sequence to grid: `[B, n, C]` -> `[B, C, h, w]`."""
    return t_BnC.transpose(1, 2).unflatten(2, (h, w))
