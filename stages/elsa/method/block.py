"""The pre-norm block around a token mixer, `x + DropPath(mixer(LN(x)))` then `x + DropPath(MLP(LN(x)))`."""

import torch
from torch import Tensor, nn

from stages.elsa.method.attention import ELSAAttention


class DropPath(nn.Module):
    """Stochastic depth: whole samples of a residual branch are left out in training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Scale what stays so that the mean does not change."""
        if not self.training or not self.rate:
            return x
        keep = 1 - self.rate
        return x * torch.empty(len(x), *[1] * (x.ndim - 1), device=x.device).bernoulli_(keep) / keep


def drop_path_rates(last: float, blocks: int) -> list[float]:
    """Of every block, rising linearly from 0 to `last`."""
    return [last * number / max(1, blocks - 1) for number in range(blocks)]


class MLP(nn.Module):
    """Linear, GELU, Linear over the last axis."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, int(dim * ratio)), nn.Linear(int(dim * ratio), dim)

    def forward(self, x: Tensor) -> Tensor:
        """Per token."""
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """A mixer (`attn`) and an MLP with residuals, `[B, H, W, C]` to `[B, H, W, C]`."""

    def __init__(self, dim: int, mixer: nn.Module, mlp_ratio: float, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(dim), mixer, nn.LayerNorm(dim)
        self.mlp, self.drop_path = MLP(dim, mlp_ratio), DropPath(drop_path)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Mix over space, then over channels."""
        x_BHWC = x_BHWC + self.drop_path(self.attn(self.norm1(x_BHWC)))
        return x_BHWC + self.drop_path(self.mlp(self.norm2(x_BHWC)))


def elsa_block(
    dim: int,
    kernel_size: int,
    num_heads: int = 1,
    mlp_ratio: float = 3.0,
    drop_path: float = 0.0,
    **attention: float,
) -> Block:
    """The paper's block; `attention` are further arguments of `ELSAAttention`."""
    return Block(dim, ELSAAttention(dim, num_heads, kernel_size, **attention), mlp_ratio, drop_path)  # type: ignore[arg-type]
