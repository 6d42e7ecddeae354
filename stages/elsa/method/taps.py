"""Sums over the k x k taps around every pixel, without ever unfolding an image into k*k copies.

Shapes: B batch, G heads, c channels of a head, T = k*k taps (row major), H, W.

All functions here work on *flat* maps. A row of W pixels is followed by p zeros, p = (k // 2) * dilation being the
reach of the kernel; rows are laid end to end, and p rows of zeros and p more zeros stand before and behind. The
neighbour (dy, dx) of every pixel is then one contiguous slice, because a step beyond the right border lands in
the zeros behind this row and one beyond the left border in those behind the row above. So each tap costs one
vectorised multiply-add over the whole map, in place (card, "Performance").
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Where taps fall on a map of height x width pixels."""

    kernel_size: int
    dilation: int
    height: int
    width: int

    @property
    def reach(self) -> int:
        """How far the outermost tap is from the centre."""
        return self.kernel_size // 2 * self.dilation

    @property
    def pitch(self) -> int:
        """Distance of two rows in a flat map."""
        return self.width + self.reach

    @property
    def length(self) -> int:
        """Pixels of a flat map without its zeros before and behind."""
        return self.height * self.pitch

    def slices(self) -> Iterator[slice]:
        """Per tap, the part of a flat map with surroundings that lies under the pixels."""
        centre = self.reach * (self.pitch + 1)
        steps = [(i - self.kernel_size // 2) * self.dilation for i in range(self.kernel_size)]
        for dy in steps:
            for dx in steps:
                start = centre + dy * self.pitch + dx
                yield slice(start, start + self.length)

    def flat(self, x: Tensor) -> Tensor:
        """`[..., H, W]` as flat pixels `[..., length]`."""
        return F.pad(x, (0, self.reach)).flatten(-2)

    def surrounded(self, x: Tensor) -> Tensor:
        """`[..., H, W]` as a flat map with its surroundings of zeros."""
        margin = self.reach * (self.pitch + 1)
        return F.pad(self.flat(x), (margin, margin))

    def unflat(self, x: Tensor) -> Tensor:
        """Flat pixels as `[..., H, W]`."""
        return x.unflatten(-1, (self.height, self.pitch))[..., : self.width]

    def inner(self, x: Tensor) -> Tensor:
        """The pixels of a flat map with surroundings, as `[..., H, W]`."""
        margin = self.reach * (self.pitch + 1)
        return self.unflat(x[..., margin : margin + self.length])


def gather(v_BGcHW: Tensor, h_BGTHW: Tensor, grid: Grid, scale_GcT: Tensor | None = None) -> Tensor:
    """`out[n] = sum_t scale_t h_t[n] v[n + t]`, `[B, G, c, H, W]`; `scale` is per channel, 1 where it is None."""
    v, h = grid.surrounded(v_BGcHW), grid.flat(h_BGTHW)
    out = v.new_zeros(*v.shape[:-1], grid.length)
    scaled = torch.empty_like(out) if scale_GcT is not None else None
    for tap, under in enumerate(grid.slices()):
        source = v[..., under]
        if scale_GcT is not None:
            source = torch.mul(source, scale_GcT[..., tap, None], out=scaled)
        out.addcmul_(source, h[:, :, tap, None])
    return grid.unflat(out)


def scatter(g_BGcHW: Tensor, h_BGTHW: Tensor, grid: Grid, scale_GcT: Tensor | None = None) -> Tensor:
    """`out[n + t] += scale_t h_t[n] g[n]`, the transpose of `gather`; what falls off the map is dropped."""
    g, h = grid.flat(g_BGcHW), grid.flat(h_BGTHW)
    out = g.new_zeros(*g.shape[:-1], grid.length + 2 * grid.reach * (grid.pitch + 1))
    scaled = torch.empty_like(g) if scale_GcT is not None else None
    for tap, under in enumerate(grid.slices()):
        source = g
        if scale_GcT is not None:
            source = torch.mul(g, scale_GcT[..., tap, None], out=scaled)
        out[..., under].addcmul_(source, h[:, :, tap, None])
    return grid.inner(out)


@dataclass
class Products:
    """Sums of `g[n] v[n + t]`: over a head's channels `[B, G, T, H, W]`, and over batch and pixels `[G, c, T]`.

    `mul` is the latter with the attention as a factor.
    """

    head: Tensor
    add: Tensor | None = None
    mul: Tensor | None = None


def products(
    g_BGcHW: Tensor,
    v_BGcHW: Tensor,
    grid: Grid,
    scale_GcT: Tensor | None = None,
    h_BGTHW: Tensor | None = None,
    want_add: bool = False,
) -> Products:
    """Products of every pixel with its neighbours, summed; `h` is given when `mul` is wanted."""
    g, v = grid.flat(g_BGcHW), grid.surrounded(v_BGcHW)
    h = None if h_BGTHW is None else grid.flat(h_BGTHW)
    batch, heads, channels, _ = g.shape
    taps = grid.kernel_size**2
    product, scaled = torch.empty_like(g), torch.empty_like(g) if scale_GcT is not None else None
    head = g.new_empty(batch, heads, taps, grid.length)
    add = g.new_empty(heads, channels, taps) if want_add else None
    mul = g.new_empty(heads, channels, taps) if h is not None else None
    for tap, under in enumerate(grid.slices()):
        torch.mul(g, v[..., under], out=product)
        if add is not None:
            add[..., tap] = product.sum((0, 3))
        if h is not None and mul is not None:
            mul[..., tap] = torch.einsum("bgcn,bgn->gc", product, h[:, :, tap])
        if scale_GcT is None:
            torch.sum(product, 2, out=head[:, :, tap])
        else:
            torch.sum(torch.mul(product, scale_GcT[..., tap, None], out=scaled), 2, out=head[:, :, tap])
    return Products(grid.unflat(head), add, mul)


def shifted(u_BGTHW: Tensor, grid: Grid) -> Tensor:
    """`out_t[n] = u_t[n + t]`, zero where that is off the map."""
    u = grid.surrounded(u_BGTHW)
    return grid.unflat(torch.stack([u[:, :, tap, under] for tap, under in enumerate(grid.slices())], 2))


def inside(grid: Grid, device: torch.device) -> Tensor:
    """Whether a tap of a pixel is on the map, bool `[T, H, W]`."""
    ones = torch.ones(1, 1, grid.kernel_size**2, grid.height, grid.width, device=device)
    return shifted(ones, grid)[0, 0] > 0
