"""The pre-norm transformer block of the encoder and of the head; parameter names are the released files'.

Shapes: B batch, N tokens, D width, H heads, d = D / H.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, qkv_bias: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def query_key_value(self, x_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each `[B, H, N, d]`."""
        batch, tokens, width = x_BND.shape
        qkv = self.qkv(x_BND).view(batch, tokens, 3, self.heads, width // self.heads)
        q_BHNd, k_BHNd, v_BHNd = qkv.permute(2, 0, 3, 1, 4)
        return q_BHNd, k_BHNd, v_BHNd

    def probabilities(self, q_BHMd: Tensor, k_BHNd: Tensor) -> Tensor:
        """Softmaxed attention `[B, H, M, N]` of M query tokens."""
        return (q_BHMd @ k_BHNd.mT * q_BHMd.shape[-1] ** -0.5).softmax(-1)

    def combine(self, attention_BHMN: Tensor, v_BHNd: Tensor) -> Tensor:
        """Values averaged by attention and projected, `[B, M, D]`."""
        return self.proj((attention_BHMN @ v_BHNd).transpose(1, 2).flatten(2))

    def forward(self, x_BND: Tensor) -> Tensor:
        """`[B, N, D]` -> `[B, N, D]`, fused."""
        q, k, v = self.query_key_value(x_BND)
        dropout = self.dropout if self.training else 0.0
        out_BHNd = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return F.dropout(self.proj(out_BHNd.transpose(1, 2).flatten(2)), self.dropout, self.training)


class Mlp(nn.Module):
    """Two linear layers with GELU, four times as wide inside."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` -> `[..., D]`."""
        hidden = F.dropout(F.gelu(self.fc1(x)), self.dropout, self.training)
        return F.dropout(self.fc2(hidden), self.dropout, self.training)


class LayerScale(nn.Module):
    """A factor per channel (DINOv2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` -> `[..., D]`."""
        return x * self.gamma


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); with `layer_scale` both branches are scaled per channel."""

    def __init__(
        self,
        width: int,
        heads: int,
        eps: float,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        layer_scale: bool = False,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn, self.mlp = Attention(width, heads, qkv_bias, dropout), Mlp(width, dropout)
        self.ls1 = LayerScale(width) if layer_scale else nn.Identity()
        self.ls2 = LayerScale(width) if layer_scale else nn.Identity()

    def forward(self, x_BND: Tensor) -> Tensor:
        """`[B, N, D]` -> `[B, N, D]`."""
        return self.after_attention(x_BND + self.ls1(self.attn(self.norm1(x_BND))))

    def with_attention(self, x_BND: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the softmaxed attention `[B, H, N, N]` that it used, a node of the graph."""
        q, k, v = self.attn.query_key_value(self.norm1(x_BND))
        attention_BHNN = self.attn.probabilities(q, k)
        return self.after_attention(x_BND + self.ls1(self.attn.combine(attention_BHNN, v))), attention_BHNN

    def after_attention(self, y: Tensor) -> Tensor:
        """What follows the attention residual, token by token: `[..., D]` -> `[..., D]`."""
        return y + self.ls2(self.mlp(self.norm2(y)))
