"""The ELSA operator on a GPU: one kernel a direction, a tile = pixels x the channels of one head.

An attention value is loaded once a tap and serves all channels of its head; sums are float32; every output has
one writer (no atomics), so that results repeat. Checked under Triton's interpreter on a CPU; not yet timed.

Names: N = H * W pixels, T taps, `bg` = batch * head.
"""

# mypy: disable-error-code="no-untyped-def"
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from stages.elsa.method.taps import Grid

PIXELS = 64  # of a tile
REDUCE = 512  # pixels that a sum over batch and map takes at a time


@triton.jit
def _forward(
    v, h, mul, add, out,
    heads, channels, height, width,
    HAS_MUL: tl.constexpr, HAS_ADD: tl.constexpr, K: tl.constexpr, DILATION: tl.constexpr,
    TRANSPOSED: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """`out[n] = sum_t w_t[n] v[n + t]`, or transposed `out[n] = sum_t w_t[n - t] v[n - t]` (v is the gradient)."""
    bg = tl.program_id(0).to(tl.int64)
    head = bg % heads
    n = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    c = tl.arange(0, CHANNELS)
    total = height * width
    y, x = n // width, n % width
    present = (c < channels)[:, None] & (n < total)[None, :]
    acc = tl.zeros((CHANNELS, PIXELS), dtype=tl.float32)
    for tap in range(K * K):
        dy = (tap // K - K // 2) * DILATION
        dx = (tap % K - K // 2) * DILATION
        if TRANSPOSED:
            dy, dx = -dy, -dx
        on_map = (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width) & (n < total)
        there = n + dy * width + dx
        at = there if TRANSPOSED else n
        weight = tl.load(h + (bg * K * K + tap) * total + at, mask=on_map, other=0.0).to(tl.float32)[None, :]
        static = (head * channels + c) * K * K + tap
        if HAS_MUL:
            weight = weight * tl.load(mul + static, mask=c < channels, other=0.0).to(tl.float32)[:, None]
        if HAS_ADD:
            weight = weight + tl.load(add + static, mask=c < channels, other=0.0).to(tl.float32)[:, None]
        place = (bg * channels + c)[:, None] * total + there[None, :]
        value = tl.load(v + place, mask=present & on_map[None, :], other=0.0).to(tl.float32)
        acc += weight * value
    tl.store(out + (bg * channels + c)[:, None] * total + n[None, :], acc, mask=present)


@triton.jit
def _grad_attention(
    v, g, mul, out,
    heads, channels, height, width,
    HAS_MUL: tl.constexpr, K: tl.constexpr, DILATION: tl.constexpr,
    CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """`out_t[n] = sum_c mul_t g[n] v[n + t]`."""
    bg = tl.program_id(0).to(tl.int64)
    head = bg % heads
    n = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    c = tl.arange(0, CHANNELS)
    total = height * width
    y, x = n // width, n % width
    present = (c < channels)[:, None] & (n < total)[None, :]
    base = (bg * channels + c)[:, None] * total
    gradient = tl.load(g + base + n[None, :], mask=present, other=0.0).to(tl.float32)
    for tap in range(K * K):
        dy = (tap // K - K // 2) * DILATION
        dx = (tap % K - K // 2) * DILATION
        on_map = (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        there = n + dy * width + dx
        value = tl.load(v + base + there[None, :], mask=present & on_map[None, :], other=0.0).to(tl.float32)
        if HAS_MUL:
            static = (head * channels + c) * K * K + tap
            value = value * tl.load(mul + static, mask=c < channels, other=0.0).to(tl.float32)[:, None]
        tl.store(out + (bg * K * K + tap) * total + n, tl.sum(gradient * value, 0), mask=n < total)


@triton.jit
def _grad_ghost(
    v, g, h, grad_mul, grad_add,
    batch, heads, channels, height, width,
    WANT_MUL: tl.constexpr, WANT_ADD: tl.constexpr, K: tl.constexpr, DILATION: tl.constexpr,
    PIXELS: tl.constexpr,
):  # fmt: skip
    """Of one channel and tap, `sum g[n] v[n + t]` over batch and map, and the same times h."""
    channel, tap = tl.program_id(0).to(tl.int64), tl.program_id(1)
    total = height * width
    dy = (tap // K - K // 2) * DILATION
    dx = (tap % K - K // 2) * DILATION
    sum_add = tl.zeros((PIXELS,), dtype=tl.float32)
    sum_mul = tl.zeros((PIXELS,), dtype=tl.float32)
    for b in range(batch):
        base = (b * heads * channels + channel) * total
        attention = ((b * heads + channel // channels) * K * K + tap) * total
        for start in range(0, total, PIXELS):
            n = start + tl.arange(0, PIXELS)
            y, x = n // width + dy, n % width + dx
            on_map = (n < total) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
            gradient = tl.load(g + base + n, mask=on_map, other=0.0).to(tl.float32)
            value = tl.load(v + base + n + dy * width + dx, mask=on_map, other=0.0).to(tl.float32)
            product = gradient * value
            sum_add += product
            if WANT_MUL:
                sum_mul += product * tl.load(h + attention + n, mask=on_map, other=0.0).to(tl.float32)
    if WANT_ADD:
        tl.store(grad_add + channel * K * K + tap, tl.sum(sum_add, 0))
    if WANT_MUL:
        tl.store(grad_mul + channel * K * K + tap, tl.sum(sum_mul, 0))


class _TritonAggregate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, h: Tensor, mul: Tensor | None, add: Tensor | None, grid: Grid) -> Tensor:
        v, h = v.contiguous(), h.contiguous()
        mul, add = (None if x is None else x.contiguous() for x in (mul, add))
        ctx.save_for_backward(v, h, mul, add)
        ctx.grid = grid
        return _weighted_sum(v, h, mul, add, grid, transposed=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        v, h, mul, add = ctx.saved_tensors
        grid, g = ctx.grid, g.contiguous()
        need_v, need_h, need_mul, need_add = ctx.needs_input_grad[:4]
        batch, heads, channels, height, width = v.shape
        grad_v = _weighted_sum(g, h, mul, add, grid, transposed=True) if need_v else None
        grad_h = grad_mul = grad_add = None
        if need_h:
            grad_h = torch.empty_like(h)
            _grad_attention[(batch * heads, triton.cdiv(height * width, PIXELS))](
                v, g, mul, grad_h, heads, channels, height, width,
                HAS_MUL=mul is not None, K=grid.kernel_size, DILATION=grid.dilation,
                CHANNELS=triton.next_power_of_2(channels), PIXELS=PIXELS,
            )  # fmt: skip
        if need_mul or need_add:
            grad_mul = torch.empty_like(mul) if need_mul else None
            grad_add = torch.empty_like(add) if need_add else None
            _grad_ghost[(heads * channels, grid.kernel_size**2)](
                v, g, h, grad_mul, grad_add, batch, heads, channels, height, width,
                WANT_MUL=need_mul, WANT_ADD=need_add, K=grid.kernel_size, DILATION=grid.dilation,
                PIXELS=REDUCE,
            )  # fmt: skip
        return grad_v, grad_h, grad_mul, grad_add, None


def _weighted_sum(
    v: Tensor, h: Tensor, mul: Tensor | None, add: Tensor | None, grid: Grid, transposed: bool
) -> Tensor:
    batch, heads, channels, height, width = v.shape
    out = torch.empty_like(v)
    _forward[(batch * heads, triton.cdiv(height * width, PIXELS))](
        v, h, mul, add, out, heads, channels, height, width,
        HAS_MUL=mul is not None, HAS_ADD=add is not None, K=grid.kernel_size, DILATION=grid.dilation,
        TRANSPOSED=transposed, CHANNELS=triton.next_power_of_2(channels), PIXELS=PIXELS,
    )  # fmt: skip
    return out


def aggregate(v: Tensor, h: Tensor, mul: Tensor | None, add: Tensor | None, grid: Grid) -> Tensor:
    """What `hadamard_ghost_aggregate` computes, its ghost matrices already `[G, c, T]` and scaled."""
    return _TritonAggregate.apply(v, h, mul, add, grid)
