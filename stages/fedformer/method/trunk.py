"""The trunk that FEDformer and Autoformer share: encoder and decoder with a decomposition inside every layer
(paper, section 3.1).

What a FEDformer is, is which blocks stand where attention stood: `Config.self_block` and
`Config.cross_block`.

Shapes: B batch, I input length, S start length, O horizon, L = S + O decoder length, C variates, F calendar
    features, D width, H heads.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.fedformer.method.autocorrelation import AutoCorrelation
from stages.fedformer.method.block import Block
from stages.fedformer.method.decomposition import CenteredLayerNorm, SeriesDecomp
from stages.fedformer.method.embedding import CircularConv, DataEmbedding
from stages.fedformer.method.fourier import Activation, FourierBlock, FourierCrossAttention, Variant
from stages.fedformer.method.modes import Policy, select_modes
from stages.fedformer.method.multiwavelet import MultiWaveletCross, MultiWaveletTransform
from stages.fedformer.method.multiwavelet_filters import Base

SelfBlock = Literal["fourier", "fourier-attention", "wavelet", "auto-correlation"]
CrossBlock = Literal["fourier", "wavelet", "auto-correlation"]
PROJECTIONS = ("query", "key", "value")


@dataclass(frozen=True)
class Sizes:
    """Lengths and widths that every model on this pipeline has (card, "Notation and shapes"); defaults are
    the paper's.
    """

    variates: int
    features: int  # of the calendar
    seq_len: int
    label_len: int
    pred_len: int
    width: int = 512
    heads: int = 8
    hidden: int = 2048  # of the feed-forward
    encoder_layers: int = 2
    decoder_layers: int = 1
    dropout: float = 0.05
    factor: int = 3  # how many delays auto-correlation keeps, or queries ProbSparse attention


@dataclass(frozen=True)
class Config:
    """Which blocks, and how they choose frequencies."""

    sizes: Sizes
    self_block: SelfBlock = "fourier"
    cross_block: CrossBlock = "fourier"
    variant: Variant = "official"
    kernels: tuple[int, ...] = (24,)
    modes: int = 64
    policy: Policy = "random"
    activation: Activation = "tanh"
    base: Base = "legendre"
    polynomials: int = 8
    self_channels: int = 128  # c of FEB-w
    cross_channels: int = 64  # c of FEA-w
    alpha: int = 16  # modes per level of FEB-w
    skipped: int = 3  # coarse levels that FEB-w leaves out


class BlockLayer(nn.Module):
    """Projections around a block: queries, keys and values in, one projection out.

    Those that the block does not read are kept, because official checkpoints have them, but not computed or
    trained.
    """

    def __init__(self, width: int, heads: int, reads: tuple[str, ...]) -> None:
        super().__init__()
        self.heads, self.reads = heads, reads
        self.projections = nn.ModuleDict({name: nn.Linear(width, width) for name in PROJECTIONS})
        self.out = nn.Linear(width, width)
        for name in PROJECTIONS:
            self.projections[name].requires_grad_(name in reads)

    def forward(self, block: nn.Module, x_BLD: Tensor, memory_BSD: Tensor) -> Tensor:
        """`[B, L, D]`; keys and values come from `memory_BSD`."""
        sources = {"query": x_BLD, "key": memory_BSD, "value": memory_BSD}
        inputs = [
            self.projections[name](sources[name]).unflatten(-1, (self.heads, -1))
            if name in self.reads
            else None
            for name in PROJECTIONS
        ]
        # the official Fourier blocks return (B, H, E, L) in memory, which is read as (B, L, H E) here: issue
        # 16 there
        return self.out(block(*inputs).reshape(x_BLD.shape))


class FeedForward(nn.Module):
    """Two linear maps without bias and a gelu between them."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """`[B, L, D]`."""
        return self.dropout(self.leave(self.dropout(F.gelu(self.enter(x_BLD)))))


class EncoderLayer(nn.Module):
    """Block and feed-forward, each followed by a decomposition of which the trend is thrown away."""

    def __init__(self, config: Config, reads: tuple[str, ...]) -> None:
        super().__init__()
        sizes = config.sizes
        self.attention = BlockLayer(sizes.width, sizes.heads, reads)
        self.feed_forward = FeedForward(sizes.width, sizes.hidden, sizes.dropout)
        self.decomp1, self.decomp2 = SeriesDecomp(config.kernels), SeriesDecomp(config.kernels)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, block: nn.Module, x_BID: Tensor) -> Tensor:
        """`[B, I, D]`."""
        x_BID, _ = self.decomp1(x_BID + self.dropout(self.attention(block, x_BID, x_BID)))
        x_BID, _ = self.decomp2(x_BID + self.feed_forward(x_BID))
        return x_BID


class DecoderLayer(nn.Module):
    """Self block, cross block and feed-forward; the three trends are projected to the variates and added
    up.
    """

    def __init__(self, config: Config, self_reads: tuple[str, ...], cross_reads: tuple[str, ...]) -> None:
        super().__init__()
        sizes = config.sizes
        self.self_attention = BlockLayer(sizes.width, sizes.heads, self_reads)
        self.cross_attention = BlockLayer(sizes.width, sizes.heads, cross_reads)
        self.feed_forward = FeedForward(sizes.width, sizes.hidden, sizes.dropout)
        self.decomp1, self.decomp2, self.decomp3 = (SeriesDecomp(config.kernels) for _ in range(3))
        self.projection = CircularConv(sizes.width, sizes.variates)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(
        self, self_block: nn.Module, cross_block: nn.Module, x_BLD: Tensor, memory_BID: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Seasonal part `[B, L, D]` and what the layer adds to the trend `[B, L, C]`."""
        x_BLD, trend1 = self.decomp1(x_BLD + self.dropout(self.self_attention(self_block, x_BLD, x_BLD)))
        x_BLD, trend2 = self.decomp2(
            x_BLD + self.dropout(self.cross_attention(cross_block, x_BLD, memory_BID))
        )
        x_BLD, trend3 = self.decomp3(x_BLD + self.feed_forward(x_BLD))
        return x_BLD, self.projection(trend1 + trend2 + trend3)


class FEDformer(nn.Module):
    """Encoder and decoder around the blocks that `config` names (card, "Whole model").

    All layers of a stack share one block, as in the released code. Modes are drawn in its order: encoder,
    decoder, cross queries, cross keys.

    Args:
        config: blocks and sizes.
        rng: draws the random modes.

    Raises:
        ValueError: the width is no multiple of the heads.
    """

    encoder_block: Block
    decoder_block: Block
    cross_block: Block

    def __init__(self, config: Config, rng: np.random.RandomState) -> None:
        super().__init__()
        sizes = config.sizes
        if sizes.width % sizes.heads:
            raise ValueError(f"width {sizes.width} is not a multiple of {sizes.heads} heads")
        self.sizes = sizes
        self.decomp = SeriesDecomp(config.kernels)
        self.enc_embedding, self.dec_embedding = (
            DataEmbedding(sizes.variates, sizes.features, sizes.width, sizes.dropout) for _ in range(2)
        )
        decoder_length = sizes.label_len + sizes.pred_len
        # the released code draws for I / 2 + O, which is the decoder's length in all of its experiments
        drawn_length = min(sizes.seq_len // 2, sizes.label_len) + sizes.pred_len
        self.encoder_block = _self_block(config, sizes.seq_len, sizes.seq_len, rng)
        self.decoder_block = _self_block(config, decoder_length, drawn_length, rng)
        self.cross_block = _cross_block(config, decoder_length, drawn_length, rng)
        self.encoder = nn.ModuleList(
            EncoderLayer(config, self.encoder_block.reads) for _ in range(sizes.encoder_layers)
        )
        self.encoder_norm = CenteredLayerNorm(sizes.width)
        self.decoder = nn.ModuleList(
            DecoderLayer(config, self.decoder_block.reads, self.cross_block.reads)
            for _ in range(sizes.decoder_layers)
        )
        self.decoder_norm = CenteredLayerNorm(sizes.width)
        self.projection = nn.Linear(sizes.width, sizes.variates)

    def forward(self, x_BIC: Tensor, mark_BIF: Tensor, x_dec: Tensor, mark_BLF: Tensor) -> Tensor:
        """Forecast `[B, O, C]`; `x_dec` is not looked at, the baselines need it."""
        start, horizon = self.sizes.label_len, self.sizes.pred_len
        seasonal_BIC, trend_BIC = self.decomp(x_BIC)
        trend_BLC = torch.cat(
            [trend_BIC[:, -start:], x_BIC.mean(1, keepdim=True).expand(-1, horizon, -1)], dim=1
        )
        seasonal_BLC = F.pad(seasonal_BIC[:, -start:], (0, 0, 0, horizon))
        memory_BID = self.enc_embedding(x_BIC, mark_BIF)
        for layer in self.encoder:
            memory_BID = layer(self.encoder_block, memory_BID)
        memory_BID = self.encoder_norm(memory_BID)
        x_BLD = self.dec_embedding(seasonal_BLC, mark_BLF)
        for layer in self.decoder:
            x_BLD, trend = layer(self.decoder_block, self.cross_block, x_BLD, memory_BID)
            trend_BLC = trend_BLC + trend
        return (self.projection(self.decoder_norm(x_BLD)) + trend_BLC)[:, -horizon:]


def _self_block(config: Config, length: int, drawn: int, rng: np.random.RandomState) -> Block:
    sizes = config.sizes
    match config.self_block:
        case "fourier":
            index = select_modes(drawn, config.modes, config.policy, rng)
            return FourierBlock(sizes.width, sizes.heads, length, index, config.variant)
        case "fourier-attention":
            index_q, index_kv = (select_modes(drawn, config.modes, config.policy, rng) for _ in range(2))
            return FourierCrossAttention(
                sizes.width, sizes.heads, length, length, index_q, index_kv, config.activation, config.variant
            )
        case "wavelet":
            return MultiWaveletTransform(
                sizes.width, length, config.self_channels, config.polynomials, config.alpha, config.skipped,
                config.base, config.variant,
            )  # fmt: skip
        case "auto-correlation":
            return AutoCorrelation(sizes.factor)


def _cross_block(config: Config, length: int, drawn: int, rng: np.random.RandomState) -> Block:
    sizes = config.sizes
    match config.cross_block:
        case "fourier":
            index_q = select_modes(drawn, config.modes, config.policy, rng)
            index_kv = select_modes(sizes.seq_len, config.modes, config.policy, rng)
            return FourierCrossAttention(
                sizes.width, sizes.heads, length, sizes.seq_len, index_q, index_kv, config.activation,
                config.variant,
            )  # fmt: skip
        case "wavelet":
            # the released model skips no level here, whatever it is told
            return MultiWaveletCross(
                sizes.width, length, config.cross_channels, config.polynomials, config.modes, 0, config.base,
                config.activation, config.variant,
            )  # fmt: skip
        case "auto-correlation":
            return AutoCorrelation(sizes.factor)
