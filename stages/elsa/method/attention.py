"""ELSA attention: logits from per-pixel products of query and key, and a filter per channel from each head's attention.

Names of parameters are the authors', so that their weights load as they are (card, "Hadamard attention").
"""

import math

import torch
from torch import Tensor, nn

from stages.elsa.method.aggregate import Backend, hadamard_ghost_aggregate


class ELSAAttention(nn.Module):
    """Local self-attention over sliding k x k neighbourhoods, `[B, H, W, C]` to `[B, H, W, C]`.

    Args:
        dim: channels C.
        num_heads: attention maps a pixel; each serves dim_v / num_heads channels.
        kernel_size: odd.
        dim_qk: channels of query and key, `dim // 3 * 2` if None; rounded up to a multiple of `group_width`.
        dim_v: channels of the value, `dim` if None.
        qk_scale: of the product; None or 0 is head_dim ** -0.5. The released models have 1.
        group_width: channels per group of the k x k convolution over the products.
        groups: of the 1 x 1 convolution that gives the logits.
        lam, gamma: exponent of the multiplicative ghost matrices and factor of the additive ones; 0 leaves them out.

    Raises:
        ValueError: an even kernel, heads that do not divide dim_v, or a `lam` that is no whole number (the
            multiplicative matrices start from a normal distribution, whose fractional powers are NaN below 0).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int = 5,
        dim_qk: int | None = None,
        dim_v: int | None = None,
        dilation: int = 1,
        qkv_bias: bool = False,
        qk_scale: float | None = 1.0,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        group_width: int = 8,
        groups: int = 1,
        lam: float = 1.0,
        gamma: float = 1.0,
        backend: Backend | None = None,
    ) -> None:
        super().__init__()
        dim_v = dim_v or dim
        dim_qk = math.ceil((dim_qk or dim // 3 * 2) / group_width) * group_width
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size}: must be odd")
        if dim_v % num_heads:
            raise ValueError(f"num_heads {num_heads}: must divide dim_v {dim_v}")
        if lam != int(lam):
            raise ValueError(f"lam {lam}: must be a whole number")
        self.dim_qk, self.dim_v, self.num_heads = dim_qk, dim_v, num_heads
        self.kernel_size, self.dilation, self.lam, self.gamma = kernel_size, dilation, lam, gamma
        self.backend = backend
        self.scale = qk_scale or (dim_v // num_heads) ** -0.5
        self.pre_proj = nn.Conv2d(dim, 2 * dim_qk + dim_v, 1, bias=qkv_bias)
        padding = kernel_size // 2 * dilation
        self.attn = nn.Sequential(
            nn.Conv2d(dim_qk, dim_qk, kernel_size, 1, padding, dilation, groups=dim_qk // group_width),
            nn.GELU(),
            nn.Conv2d(dim_qk, kernel_size**2 * num_heads, 1, groups=groups),
        )
        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(proj_drop)
        self.post_proj = nn.Linear(dim_v, dim)
        self.ghost_head = self._ghost_head()

    def _ghost_head(self) -> nn.Parameter | None:
        shape = (1, self.dim_v, self.kernel_size, self.kernel_size)
        factor, summand = torch.randn(shape), nn.init.trunc_normal_(torch.empty(shape), std=0.02)
        match bool(self.lam), bool(self.gamma):
            case True, True:
                return nn.Parameter(torch.stack([factor, summand]))
            case True, False:
                return nn.Parameter(factor)
            case False, True:
                return nn.Parameter(summand)
        return None

    def products(self, x_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Hadamard products `q * k * scale`, `[B, dim_qk, H, W]`, and values `[B, dim_v, H, W]`."""
        parts = [self.dim_qk, self.dim_qk, self.dim_v]
        q, k, v = self.pre_proj(x_BHWC.permute(0, 3, 1, 2)).split(parts, 1)
        return q * k * self.scale, v

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Mix every pixel with its neighbourhood."""
        p_BqHW, v_BCHW = self.products(x_BHWC)
        # h_{j-i} = softmax_j((q_i * k_i) . r^k + r^q . (q_j * k_j) + r^b): the k x k convolution is r^q, the 1 x 1 is r^k
        # convolutions like channels innermost, as x comes, the sums over taps pixels; the turn is cheapest here, where
        # channels are few
        hidden_BqHW = self.attn[:2](p_BqHW).contiguous()
        logits_BGTHW = self.attn[2](hidden_BqHW).unflatten(1, (self.num_heads, self.kernel_size**2))
        h_BGTHW = self.attn_drop(logits_BGTHW.softmax(2))
        mul = add = None
        if self.ghost_head is not None:
            ghost = self.ghost_head.flatten(0, -4)  # [1 or 2, dim_v, k, k]
            mul, add = ghost[0] if self.lam else None, ghost[-1] if self.gamma else None
        out_BGcHW = hadamard_ghost_aggregate(
            v_BCHW.unflatten(1, (self.num_heads, -1)),
            h_BGTHW, mul, add, self.kernel_size, self.dilation, self.lam, self.gamma, self.backend,
        )  # fmt: skip
        return self.proj_drop(self.post_proj(out_BGcHW.flatten(1, 2).permute(0, 2, 3, 1)))
