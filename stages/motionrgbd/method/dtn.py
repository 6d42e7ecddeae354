"""DTN, the decoupled temporal network: three transformers at three frame rates (paper 3.1; lib/model/DTN.py).

Shapes: B clips, T frames, D token width, n frames of a branch, L = n + 1 tokens with the class token, H heads, d of a head,
K classes, R branches.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.motionrgbd.method.blocks import TemporalInception, inception_widths, pool_time
from stages.motionrgbd.method.sampling import segment_indices


class KNNAttention(nn.Module):
    """Self-attention in which every query keeps its `floor(rho * L)` largest scores."""

    def __init__(self, dim: int, heads: int, head_dim: int, rho: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.scale, self.rho = heads, head_dim**-0.5, rho
        self.to_qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def attention(self, x_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Attention map `[B, H, L, L]` and values `[B, H, L, d]`."""
        q_BHLd, k_BHLd, v_BHLd = self.to_qkv(x_BLD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores_BHLL = self.scale * (q_BHLd @ k_BHLd.transpose(-1, -2))
        kept = int(self.rho * scores_BHLL.shape[-1])
        if kept < scores_BHLL.shape[-1]:
            far_BHLL = torch.ones_like(scores_BHLL, dtype=torch.bool)
            far_BHLL.scatter_(-1, scores_BHLL.topk(kept, dim=-1, sorted=False).indices, False)
            scores_BHLL = scores_BHLL.masked_fill(far_BHLL, -torch.inf)
        return scores_BHLL.softmax(-1), v_BHLd

    def forward(self, x_BLD: Tensor) -> Tensor:
        """`[B, L, D]`."""
        attention_BHLL, v_BHLd = self.attention(x_BLD)
        out_BLX = (attention_BHLL @ v_BHLd).transpose(1, 2).flatten(2)
        return self.dropout(self.to_out(out_BLX))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, heads: int, head_dim: int, hidden: int, rho: float, dropout: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), KNNAttention(dim, heads, head_dim, rho, dropout)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """`[B, L, D]`."""
        x_BLD = x_BLD + self.attention(self.norm1(x_BLD))
        hidden_BLX = self.dropout(F.gelu(self.fc1(self.norm2(x_BLD))))
        return x_BLD + self.dropout(self.fc2(hidden_BLX))


class Branch(nn.Module):
    """One transformer on n of the T frames, with a temporal inception block before it."""

    def __init__(
        self, frames: int, dim: int, depth: int, heads: int, head_dim: int, hidden: int, rho: float,
        dropout: float, init_std: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.frames = frames
        self.class_token = nn.Parameter(torch.randn(1, 1, dim))
        self.positions = nn.Parameter(init_std * torch.randn(1, frames + 1, dim))
        self.local = TemporalInception(dim, inception_widths(dim))
        self.blocks = nn.ModuleList(Block(dim, heads, head_dim, hidden, rho, dropout) for _ in range(depth))

    def forward(self, z_BnD: Tensor) -> Tensor:
        """The class token `[B, D]` after the last block."""
        x_BLD = torch.cat([self.class_token.expand(len(z_BnD), -1, -1), z_BnD], 1) + self.positions
        class_B1D, tokens_BnD = x_BLD[:, :1], x_BLD[:, 1:]
        local_BnD = self.local(tokens_BnD.transpose(1, 2)).transpose(1, 2)
        x_BLD = torch.cat([class_B1D, pool_time(local_BnD)], 1)
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return x_BLD[:, 0]


class DTN(nn.Module):
    """The branches, slowest first; each sees other frames of the same tokens.

    Args:
        frames: n of each branch, at most T.
        dim: token width D, a multiple of 64.
        depth: blocks N of a branch.
        heads, head_dim, hidden, rho, dropout: of a block.
        position_std: of the position embeddings' first values (1 in the released code).
    """

    def __init__(
        self, frames: Sequence[int], dim: int, depth: int, heads: int, head_dim: int, hidden: int, rho: float,
        dropout: float = 0.1, position_std: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.branches = nn.ModuleList(
            Branch(n, dim, depth, heads, head_dim, hidden, rho, dropout, position_std) for n in frames
        )

    def picks(self, frames: int) -> list[Tensor]:
        """The frames of each branch: drawn in training (one draw for the batch), the middle ones in evaluation."""
        pick = "random" if self.training else "middle"
        return [segment_indices(frames, branch.frames, pick) for branch in self.branches]  # type: ignore[arg-type]

    def forward(self, z_BTD: Tensor, picks: Sequence[Tensor] | None = None) -> Tensor:
        """Class tokens `[B, R, D]`, one of each branch; `picks` overrides the frames that they see."""
        chosen = self.picks(z_BTD.shape[1]) if picks is None else picks
        return torch.stack(
            [
                branch(z_BTD[:, pick.to(z_BTD.device)])
                for branch, pick in zip(self.branches, chosen, strict=True)
            ],
            1,
        )
