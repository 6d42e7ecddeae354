"""Transformers without decomposition, baselines: Informer, and the vanilla Transformer with the same
embeddings.

Shapes as in `trunk.py`: B batch, I input length, L = S + O decoder length, C variates, F calendar features,
D width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from stages.fedformer.method.attention import FullAttention, ProbSparseAttention
from stages.fedformer.method.embedding import DataEmbedding
from stages.fedformer.method.trunk import Sizes


class AttentionLayer(nn.Module):
    """Projections around an attention."""

    def __init__(self, width: int, heads: int, attention: nn.Module) -> None:
        super().__init__()
        self.heads, self.attention = heads, attention
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x_BLD: Tensor, memory_BSD: Tensor) -> Tensor:
        """`[B, L, D]`."""
        inputs = (self.query(x_BLD), self.key(memory_BSD), self.value(memory_BSD))
        q, k, v = (x.unflatten(-1, (self.heads, -1)) for x in inputs)
        return self.out(self.attention(q, k, v).flatten(2))


class Layer(nn.Module):
    """Self-attention, cross-attention where `cross` is given, feed-forward; layer norm after each."""

    def __init__(self, sizes: Sizes, own: nn.Module, cross: nn.Module | None = None) -> None:
        super().__init__()
        self.own = AttentionLayer(sizes.width, sizes.heads, own)
        self.cross = AttentionLayer(sizes.width, sizes.heads, cross) if cross else None
        self.enter, self.leave = nn.Linear(sizes.width, sizes.hidden), nn.Linear(sizes.hidden, sizes.width)
        self.norms = nn.ModuleList(nn.LayerNorm(sizes.width) for _ in range(3 if cross else 2))
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x_BLD: Tensor, memory_BSD: Tensor | None = None) -> Tensor:
        """`[B, L, D]`."""
        x_BLD = self.norms[0](x_BLD + self.dropout(self.own(x_BLD, x_BLD)))
        if self.cross and memory_BSD is not None:
            x_BLD = self.norms[1](x_BLD + self.dropout(self.cross(x_BLD, memory_BSD)))
        y_BLD = self.dropout(self.leave(self.dropout(F.gelu(self.enter(x_BLD)))))
        return self.norms[-1](x_BLD + y_BLD)


class Distil(nn.Module):
    """Halve the length between two encoder layers of Informer: convolution, batch norm, ELU, max-pooling."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=1, padding_mode="circular")
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """`[B, L / 2, D]`."""
        x_BDL = F.elu(self.norm(self.conv(x_BLD.transpose(1, 2))))
        return F.max_pool1d(x_BDL, kernel_size=3, stride=2, padding=1).transpose(1, 2)


class Transformer(nn.Module):
    """Encoder, and a decoder that sees the last S values and zeros in place of what it shall predict.

    `sparse` makes it Informer: ProbSparse attention everywhere, and a distilling convolution between encoder
    layers.
    """

    def __init__(self, sizes: Sizes, sparse: bool) -> None:
        super().__init__()
        self.pred_len = sizes.pred_len

        def attention(causal: bool) -> nn.Module:
            if sparse:
                return ProbSparseAttention(causal, sizes.factor, sizes.dropout)
            return FullAttention(causal, sizes.dropout)

        self.enc_embedding, self.dec_embedding = (
            DataEmbedding(sizes.variates, sizes.features, sizes.width, sizes.dropout, position=True)
            for _ in range(2)
        )
        self.encoder = nn.ModuleList(Layer(sizes, attention(False)) for _ in range(sizes.encoder_layers))
        self.distil = nn.ModuleList(Distil(sizes.width) for _ in range(sizes.encoder_layers - 1) if sparse)
        self.encoder_norm = nn.LayerNorm(sizes.width)
        self.decoder = nn.ModuleList(
            Layer(sizes, attention(True), attention(False)) for _ in range(sizes.decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(sizes.width)
        self.projection = nn.Linear(sizes.width, sizes.variates)

    def forward(self, x_BIC: Tensor, mark_BIF: Tensor, x_BLC: Tensor, mark_BLF: Tensor) -> Tensor:
        """Forecast `[B, O, C]`; the last O rows of `x_BLC` are zeros."""
        memory_BSD = self.enc_embedding(x_BIC, mark_BIF)
        for i, layer in enumerate(self.encoder):
            memory_BSD = layer(memory_BSD)
            if i < len(self.distil):
                memory_BSD = self.distil[i](memory_BSD)
        memory_BSD = self.encoder_norm(memory_BSD)
        x_BLD = self.dec_embedding(x_BLC, mark_BLF)
        for layer in self.decoder:
            x_BLD = layer(x_BLD, memory_BSD)
        return self.projection(self.decoder_norm(x_BLD))[:, -self.pred_len :]
