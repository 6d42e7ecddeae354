"""Local token mixers with one interface, `[B, H, W, C]` to `[B, H, W, C]`: the paper's unified view (card, "Method").

    y_i^c = sum_{j in Phi(i)} Norm_j( q_i . k_j + q_i . r^k_{j-i} + r^q_{j-i} . k_j + r^b_{j-i} ) v_j^c

They differ in the logit terms that are on, in `Norm`, in the support `Phi` (the sliding k x k neighbourhood Theta,
or the fixed window Omega) and in the number of heads. All project to values before and back after, except
involution, which mixes its input as it is.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.elsa.method.aggregate import hadamard_ghost_aggregate, neighbour_products
from stages.elsa.method.taps import Grid, inside, shifted

Norm = Literal["identity", "filter", "softmax"]


def normalise(filters: Tensor, norm: Norm, dim: int) -> Tensor:
    """Filter weights over their taps: as they are, standardised as DDF does, or softmax."""
    match norm:
        case "identity":
            return filters
        case "filter":  # unbiased deviation; the factor is 1 / k
            centred = filters - filters.mean(dim, keepdim=True)
            deviation = filters.std(dim, keepdim=True) + 1e-10
            return centred / deviation * filters.shape[dim] ** -0.5
        case "softmax":
            return filters.softmax(dim)


class WindowAttention(nn.Module):
    """Self-attention in disjoint windows, shifted by `shift` pixels; maps of any size are padded with zeros.

    Names and layout are those of the authors' stage 4: `pre_proj` gives [v|q|k], `rb` is `[heads, (2w-1)^2]` by
    (key - query). `bias` turns r^b on, `terms` the position embeddings q . r^k and r^q . k.
    """

    relative_id: Tensor

    def __init__(
        self, dim: int, num_heads: int, window: int, shift: int = 0, bias: bool = True, terms: bool = False
    ) -> None:
        super().__init__()
        self.num_heads, self.window, self.shift = num_heads, window, shift
        self.scale = (dim // num_heads) ** -0.5
        self.pre_proj, self.post_proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        offsets = (2 * window - 1) ** 2
        self.rb = _truncated(num_heads, offsets) if bias else None
        self.rk = _truncated(num_heads, dim // num_heads, offsets) if terms else None
        self.rq = _truncated(num_heads, dim // num_heads, offsets) if terms else None
        place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
        y_qk, x_qk = (place.flatten(1)[:, None, :] - place.flatten(1)[:, :, None]) + window - 1
        self.register_buffer("relative_id", (y_qk * (2 * window - 1) + x_qk).flatten(), persistent=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Attend within windows."""
        batch, height, width, dim = x_BHWC.shape
        w, heads = self.window, self.num_heads
        x_BHWC = F.pad(x_BHWC, (0, 0, 0, -width % w, 0, -height % w))
        padded = x_BHWC.shape[1:3]
        if self.shift:
            x_BHWC = x_BHWC.roll((-self.shift, -self.shift), (1, 2))
        windows = self._windows(x_BHWC)  # [B * windows, w * w, C]
        v, q, k = self.pre_proj(windows).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        logits = (q * self.scale) @ k.transpose(-1, -2)
        tokens = w * w
        if self.rk is not None and self.rq is not None:
            ids = self.relative_id.view(tokens, tokens).expand(*logits.shape)
            logits = logits + (q @ self.rk).gather(-1, ids)
            logits = logits + (k @ self.rq).gather(-1, ids.transpose(-1, -2)).transpose(-1, -2)
        if self.rb is not None:
            logits = logits + self.rb[:, self.relative_id].view(heads, tokens, tokens)
        if self.shift:
            mask = self._mask(padded, x_BHWC.device)
            logits = logits.unflatten(0, (batch, -1)) + mask[:, None]
            logits = logits.flatten(0, 1)
        out = self.post_proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
        out = out.view(batch, padded[0] // w, padded[1] // w, w, w, dim).transpose(2, 3)
        out = out.reshape(batch, *padded, dim)
        if self.shift:
            out = out.roll((self.shift, self.shift), (1, 2))
        return out[:, :height, :width]

    def _windows(self, x_BHWC: Tensor) -> Tensor:
        w = self.window
        x = x_BHWC.unflatten(2, (-1, w)).unflatten(1, (-1, w)).transpose(2, 3)
        return x.reshape(-1, w * w, x_BHWC.shape[-1])

    def _mask(self, size: torch.Size, device: torch.device) -> Tensor:
        """-100 between pixels that were not neighbours before the shift, `[windows, w * w, w * w]`."""
        parts = []
        for length in size:
            i = torch.arange(length, device=device)
            parts.append((i >= length - self.window).long() + (i >= length - self.shift).long())
        region = (3 * parts[0][:, None] + parts[1]).view(1, *size, 1)
        window = self._windows(region).squeeze(-1)
        return -100.0 * (window[:, :, None] != window[:, None, :]).float()


class NeighborhoodAttention(nn.Module):
    """Self-attention over the sliding neighbourhood; taps outside the map take no part.

    `bias` turns r^b on, `terms` the position embeddings q . r^k and r^q . k.
    """

    def __init__(
        self, dim: int, num_heads: int, kernel_size: int, bias: bool = True, terms: bool = False
    ) -> None:
        super().__init__()
        self.num_heads, self.kernel_size = num_heads, kernel_size
        self.scale = (dim // num_heads) ** -0.5
        self.pre_proj, self.post_proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        taps, width = kernel_size**2, dim // num_heads
        self.rb = _truncated(num_heads, taps) if bias else None
        self.rk = _truncated(num_heads, width, taps) if terms else None
        self.rq = _truncated(num_heads, width, taps) if terms else None

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Attend to the neighbourhood."""
        split = self.pre_proj(x_BHWC).unflatten(-1, (3, self.num_heads, -1))
        v, q, k = split.permute(3, 0, 4, 5, 1, 2).contiguous()  # each [B, G, c, H, W]
        grid = Grid(self.kernel_size, 1, *x_BHWC.shape[1:3])
        logits_BGTHW = neighbour_products(q * self.scale, k, self.kernel_size)
        if self.rk is not None and self.rq is not None:
            logits_BGTHW = logits_BGTHW + torch.einsum("bgchw,gct->bgthw", q, self.rk)
            logits_BGTHW = logits_BGTHW + shifted(torch.einsum("bgchw,gct->bgthw", k, self.rq), grid)
        if self.rb is not None:
            logits_BGTHW = logits_BGTHW + self.rb[..., None, None]
        logits_BGTHW = logits_BGTHW.masked_fill(~inside(grid, x_BHWC.device), float("-inf"))
        out = hadamard_ghost_aggregate(v, logits_BGTHW.softmax(2), None, None, self.kernel_size, gamma=0)
        return self.post_proj(out.flatten(1, 2).permute(0, 2, 3, 1))


class DepthwiseConv(nn.Module):
    """One static k x k filter a channel: r^b alone, no normalisation, as many heads as channels."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        self.pre_proj, self.post_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.filters = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Convolve every channel."""
        v_BCHW = self.pre_proj(x_BHWC).permute(0, 3, 1, 2).contiguous()
        return self.post_proj(self.filters(v_BCHW).permute(0, 2, 3, 1))


class DynamicFilter(nn.Module):
    """A k x k filter a pixel and head, predicted from the pixel alone: q . r^k + r^b."""

    def __init__(self, dim: int, num_heads: int, kernel_size: int, norm: Norm = "softmax") -> None:
        super().__init__()
        self.num_heads, self.kernel_size, self.norm = num_heads, kernel_size, norm
        self.pre_proj = nn.Linear(dim, 2 * dim)  # [q|v]
        self.filters = nn.Linear(dim, num_heads * kernel_size**2)
        self.post_proj = nn.Linear(dim, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Filter every pixel's neighbourhood."""
        q, v = self.pre_proj(x_BHWC).chunk(2, -1)
        h_BGTHW = _as_taps(self.filters(q), self.num_heads)
        out = hadamard_ghost_aggregate(
            _as_heads(v, self.num_heads), normalise(h_BGTHW, self.norm, 2), None, None, self.kernel_size, gamma=0
        )  # fmt: skip
        return self.post_proj(out.flatten(1, 2).permute(0, 2, 3, 1))


class DDF(nn.Module):
    """Decoupled dynamic filter: one predicted filter a pixel, combined with a static one a channel (x or +)."""

    def __init__(self, dim: int, kernel_size: int, combine: Literal["mul", "add"] = "mul") -> None:
        super().__init__()
        self.kernel_size, self.combine = kernel_size, combine
        self.pre_proj, self.post_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.filters = nn.Linear(dim, kernel_size**2)
        self.channel_filters = nn.Parameter(torch.randn(dim, kernel_size**2))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Filter every pixel's neighbourhood."""
        h_BGTHW = normalise(_as_taps(self.filters(x_BHWC), 1), "filter", 2)
        static = normalise(self.channel_filters, "filter", 1).unflatten(1, (self.kernel_size, -1))
        lam, gamma = (1, 0) if self.combine == "mul" else (0, 1)
        out = hadamard_ghost_aggregate(
            _as_heads(self.pre_proj(x_BHWC), 1), h_BGTHW, static, static, self.kernel_size, 1, lam, gamma
        )
        return self.post_proj(out.flatten(1, 2).permute(0, 2, 3, 1))


class Involution(nn.Module):
    """A filter a pixel and group from a bottleneck of the pixel, without normalisation; the value is the input."""

    def __init__(self, dim: int, num_heads: int, kernel_size: int, reduction: int = 4) -> None:
        super().__init__()
        self.num_heads, self.kernel_size = num_heads, kernel_size
        self.reduce = nn.Linear(dim, dim // reduction)
        self.filters = nn.Linear(dim // reduction, num_heads * kernel_size**2)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Filter every pixel's neighbourhood."""
        h_BGTHW = _as_taps(self.filters(F.relu(self.reduce(x_BHWC))), self.num_heads)
        v_BGcHW = _as_heads(x_BHWC, self.num_heads)
        out = hadamard_ghost_aggregate(v_BGcHW, h_BGTHW, None, None, self.kernel_size, gamma=0)
        return out.flatten(1, 2).permute(0, 2, 3, 1)


def _truncated(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))


def _as_heads(x_BHWC: Tensor, heads: int) -> Tensor:
    """`[B, G, c, H, W]`."""
    return x_BHWC.permute(0, 3, 1, 2).unflatten(1, (heads, -1)).contiguous()


def _as_taps(x_BHWC: Tensor, heads: int) -> Tensor:
    """`[B, G, T, H, W]`."""
    return x_BHWC.permute(0, 3, 1, 2).unflatten(1, (heads, -1))
