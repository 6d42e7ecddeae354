"""The ELSA operator: every pixel sums its k x k neighbours with a filter per channel (card, "The ELSA operator").

    out[b, C, n] = sum_t ( mul[C, t]^lam * h[b, head(C), t, n] + gamma * add[C, t] ) * v[b, C, n + t]

v is zero outside the map, while the softmax that made h ran over all taps. Head g owns the channels
[g c, (g + 1) c). Four backends give the same values and gradients:

* `reference`: unfolds v and builds the filters, as the formula reads (slow, large; for tests and comparison),
* `shift`: one in-place multiply-add a tap; only v and h are kept for the backward pass (CPU),
* `triton`: a kernel per direction (GPU), in aggregate_triton.py,
* `compiled`: the tap loop through torch.compile.

Half-precision inputs are summed in float32.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from stages.elsa.method.taps import Grid, gather, products, scatter

Backend = Literal["reference", "shift", "triton", "compiled"]


def hadamard_ghost_aggregate(
    v_BGcHW: Tensor,
    attn_BGTHW: Tensor,
    ghost_mul_Ckk: Tensor | None,
    ghost_add_Ckk: Tensor | None,
    kernel_size: int,
    dilation: int = 1,
    lam: float = 0.0,
    gamma: float = 1.0,
    backend: Backend | None = None,
) -> Tensor:
    """Aggregate values over neighbourhoods with attention and ghost head.

    Args:
        v_BGcHW: values; C = G * c channels.
        attn_BGTHW: attention after softmax, T = kernel_size ** 2, tap = ky * kernel_size + kx.
        ghost_mul_Ckk: static factor; used when lam is not 0 (which drops it, also where it is 0). It has to be
            positive when lam is no whole number.
        ghost_add_Ckk: static summand; used when gamma is not 0.
        kernel_size: odd; it may be larger than the map.
        dilation: distance of neighbouring taps.
        lam, gamma: fixed exponent of `ghost_mul` and factor of `ghost_add`.
        backend: None is `triton` on a GPU and `shift` elsewhere.

    Returns:
        `[B, G, c, H, W]` in the type of `v`.

    Raises:
        ValueError: an even kernel, shapes that do not fit, or a missing ghost matrix.
    """
    _check(v_BGcHW, attn_BGTHW, kernel_size)
    taps = kernel_size**2
    heads, channels = v_BGcHW.shape[1:3]

    def per_head(name: str, ghost: Tensor | None, used: float) -> Tensor | None:
        if not used:
            return None
        if ghost is None or ghost.shape != (heads * channels, kernel_size, kernel_size):
            raise ValueError(f"{name} must be [{heads * channels}, {kernel_size}, {kernel_size}]")
        return ghost.reshape(heads, channels, taps)

    mul, add = per_head("ghost_mul", ghost_mul_Ckk, lam), per_head("ghost_add", ghost_add_Ckk, gamma)
    mul = mul if mul is None or lam == 1 else mul**lam
    add = add if add is None or gamma == 1 else gamma * add
    grid = Grid(kernel_size, dilation, *v_BGcHW.shape[-2:])
    if backend is None:
        backend = "triton" if v_BGcHW.is_cuda else "shift"
    inputs = (v_BGcHW, attn_BGTHW, mul, add)
    if backend == "triton":
        from stages.elsa.method.aggregate_triton import aggregate

        return aggregate(*inputs, grid)
    precise = torch.promote_types(v_BGcHW.dtype, torch.float32)
    inputs = tuple(None if x is None else x.to(precise) for x in inputs)  # type: ignore[assignment]
    with _without_autocast(v_BGcHW):
        match backend:
            case "reference":
                out = unfold_aggregate(*inputs, grid)
            case "shift":
                out = _ShiftAggregate.apply(*inputs, grid)
            case "compiled":
                out = _compiled()(*inputs, grid)
    return out.to(v_BGcHW.dtype)


def _check(v: Tensor, attn: Tensor, kernel_size: int) -> None:
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size {kernel_size}: must be odd")
    expected = (*v.shape[:2], kernel_size**2, *v.shape[3:])
    if attn.shape != expected:
        raise ValueError(f"attn is {list(attn.shape)}, must be {list(expected)} for v {list(v.shape)}")


def _without_autocast(x: Tensor) -> AbstractContextManager[object]:
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind):  # the meta device, on which costs are counted
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def unfold_aggregate(v: Tensor, h: Tensor, mul: Tensor | None, add: Tensor | None, grid: Grid) -> Tensor:
    """As the formula reads: three tensors of the size of k*k copies of `v`."""
    batch, heads, channels, height, width = v.shape
    unfolded = F.unfold(v.flatten(1, 2), grid.kernel_size, grid.dilation, grid.reach)
    unfolded_BGcTN = unfolded.view(batch, heads, channels, -1, height * width)
    filters = h.flatten(-2)[:, :, None]
    if mul is not None:
        filters = mul[..., None] * filters
    if add is not None:
        filters = filters + add[..., None]
    return (filters * unfolded_BGcTN).sum(3).view_as(v)


class _ShiftAggregate(torch.autograd.Function):
    """The sums of `taps.py`, the additive ghost split off as a depthwise convolution."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, h: Tensor, mul: Tensor | None, add: Tensor | None, grid: Grid) -> Tensor:
        ctx.save_for_backward(v, h, mul, add)
        ctx.grid = grid
        out = gather(v, h, grid, mul)
        return out.contiguous() if add is None else out + _depthwise(v, add, grid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        v, h, mul, add = ctx.saved_tensors
        need_v, need_h, need_mul, need_add = ctx.needs_input_grad[:4]
        grad_v = None
        if need_v:
            grad_v = scatter(g, h, ctx.grid, mul)
            if add is not None:  # the transpose of a convolution of odd size is one with the filter turned
                grad_v = grad_v + _depthwise(g, add.flip(-1), ctx.grid)
        if not (need_h or need_mul or need_add):
            return grad_v, None, None, None, None
        sums = products(g, v, ctx.grid, mul, h if need_mul else None, need_add)
        return grad_v, sums.head, sums.mul, sums.add, None


def _depthwise(v_BGcHW: Tensor, filter_GcT: Tensor, grid: Grid) -> Tensor:
    k = grid.kernel_size
    return F.conv2d(
        v_BGcHW.flatten(1, 2),
        filter_GcT.reshape(-1, 1, k, k),
        padding=grid.reach,
        dilation=grid.dilation,
        groups=filter_GcT.shape[0] * filter_GcT.shape[1],
    ).view_as(v_BGcHW)


def _tap_loop(v: Tensor, h: Tensor, mul: Tensor | None, add: Tensor | None, grid: Grid) -> Tensor:
    """One expression a tap, for a compiler to fuse."""
    padded = F.pad(v, (grid.reach,) * 4)
    out = torch.zeros_like(v)
    for tap in range(grid.kernel_size**2):
        y, x = (grid.dilation * i for i in divmod(tap, grid.kernel_size))
        weight = h[:, :, tap, None]
        if mul is not None:
            weight = weight * mul[:, :, tap, None, None]
        if add is not None:
            weight = weight + add[:, :, tap, None, None]
        out = out + weight * padded[..., y : y + grid.height, x : x + grid.width]
    return out


@cache
def _compiled() -> Any:
    return torch.compile(_tap_loop)


class _NeighbourProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, grid: Grid) -> Tensor:
        ctx.save_for_backward(q, k)
        ctx.grid = grid
        return products(q, k, grid).head.contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_BGTHW: Tensor) -> tuple[Tensor | None, ...]:
        q, k = ctx.saved_tensors
        return gather(k, g_BGTHW, ctx.grid), scatter(q, g_BGTHW, ctx.grid), None


def neighbour_products(q_BGcHW: Tensor, k_BGcHW: Tensor, kernel_size: int, dilation: int = 1) -> Tensor:
    """`q[n] . k[n + t]` of every pixel with its neighbours, `[B, G, T, H, W]`; zero outside the map."""
    grid = Grid(kernel_size, dilation, *q_BGcHW.shape[-2:])
    precise = torch.promote_types(q_BGcHW.dtype, torch.float32)
    with _without_autocast(q_BGcHW):
        return _NeighbourProducts.apply(q_BGcHW.to(precise), k_BGcHW.to(precise), grid)
