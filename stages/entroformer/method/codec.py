"""The codec: transforms, hyperprior, context model and parameter network, in training and as bytes.

Shapes: B batch, S latent channels, Z channels of z, D width of features, h x w grid of latents.

What is written and read must come from the same numbers on every machine and number of threads. So files are coded with
an entropy model all of whose sums are exact (exact.py), its parameters are rounded to the grid of integer tables
(likelihood.py), and a CRC of the latents in the file (file_format.py) refuses whatever still differs.
"""

import copy
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from stages.entroformer.method.attention import AttentionSpec
from stages.entroformer.method.context import (
    BidirectionalContext,
    CheckerboardConvContext,
    MaskedConvContext,
    SerialContext,
    checkerboard,
)
from stages.entroformer.method.exact import exact, exp_digest
from stages.entroformer.method.hyperprior import (
    RESAMPLINGS,
    ConvHyperDecoder,
    ConvHyperEncoder,
    TransformerHyperDecoder,
    TransformerHyperEncoder,
)
from stages.entroformer.method.likelihood import (
    ChannelGaussianPrior,
    DeepFactorisedPrior,
    Frequencies,
    channel_frequencies,
    gaussian_frequencies,
    nats,
    split_parameters,
    table_digest,
)
from stages.entroformer.method.quantise import add_noise, quantise, straight_through
from stages.entroformer.method.range_coder import SymbolDecoder, SymbolEncoder
from stages.entroformer.method.transforms import (
    DCT_BLOCK,
    AnalysisTransform,
    BlockDCTAnalysis,
    BlockDCTSynthesis,
    SynthesisTransform,
    initialise_convolution,
)

CONV_STRIDE = 16
MODEL_ID_BYTES = 6


@dataclass(frozen=True)
class CodecSpec:
    """Everything that defines a codec but its weights."""

    transform: Literal["conv", "dct"]
    channels: int  # of the transforms
    latents: int
    hyper_channels: int
    hyper: Literal["none", "conv", "transformer"]
    context: Literal["none", "masked-conv", "checkerboard-conv", "serial", "two-pass"]
    attention: AttentionSpec
    depth: int
    mixtures: int = 1
    prior: Literal["gaussian", "deep"] = "gaussian"

    @property
    def two_pass(self) -> bool:
        """Whether latents are coded in two halves of a checkerboard."""
        return self.context in ("checkerboard-conv", "two-pass")

    @property
    def serial(self) -> bool:
        """Whether latents are coded position by position."""
        return self.context in ("masked-conv", "serial")

    @property
    def stride(self) -> int:
        """Pixels per latent position."""
        return CONV_STRIDE if self.transform == "conv" else DCT_BLOCK

    @property
    def multiple(self) -> int:
        """What height and width of a picture are padded to a multiple of."""
        return self.stride * 2**RESAMPLINGS

    @staticmethod
    def from_dict(values: dict) -> "CodecSpec":
        """The specification that `asdict` has written."""
        return CodecSpec(**{**values, "attention": AttentionSpec(**values["attention"])})


@dataclass(frozen=True)
class Rates:
    """Code lengths in nats: `y` of every latent `[B, S, h, w]`, `z` of the side information (None without)."""

    y: Tensor
    z: Tensor | None

    def bits(self) -> Tensor:
        """All of it, in bits."""
        total = self.y.sum() if self.z is None else self.y.sum() + self.z.sum()
        return total / np.log(2)


class EntropyModel(nn.Module):
    """The probability of latents: from z, from latents that are known already, or from both."""

    def __init__(self, spec: CodecSpec) -> None:
        super().__init__()
        self.spec = spec
        dim, attention = spec.attention.dim, spec.attention
        self.hyper_encoder: nn.Module | None = None
        self.hyper_decoder: nn.Module | None = None
        self.prior: ChannelGaussianPrior | DeepFactorisedPrior | None = None
        if spec.hyper == "conv":
            self.hyper_encoder = ConvHyperEncoder(spec.latents, spec.hyper_channels, dim)
            self.hyper_decoder = ConvHyperDecoder(spec.hyper_channels, dim)
        elif spec.hyper == "transformer":
            self.hyper_encoder = TransformerHyperEncoder(
                spec.latents, spec.hyper_channels, attention, spec.depth
            )
            self.hyper_decoder = TransformerHyperDecoder(spec.hyper_channels, attention, spec.depth)
        if spec.hyper != "none":
            kind = ChannelGaussianPrior if spec.prior == "gaussian" else DeepFactorisedPrior
            self.prior = kind(spec.hyper_channels)
        self.context: nn.Module | None = None
        if spec.context == "masked-conv":
            self.context = MaskedConvContext(spec.latents, dim)
        elif spec.context == "checkerboard-conv":
            self.context = CheckerboardConvContext(spec.latents, dim)
        elif spec.context == "serial":
            self.context = SerialContext(spec.latents, attention, spec.depth)
        elif spec.context == "two-pass":
            self.context = BidirectionalContext(spec.latents, attention, spec.depth)
        inputs = dim * ((spec.hyper != "none") + (spec.context != "none"))
        wide = dim * attention.mlp_ratio
        self.count = 2 if spec.mixtures == 1 else 3
        outputs = spec.latents * spec.mixtures * self.count
        self.parameter_network = nn.Sequential(
            nn.Conv2d(inputs, wide, 1), nn.LeakyReLU(0.2), nn.Conv2d(wide, outputs, 1)
        )
        self.parameter_network.apply(initialise_convolution)

    def parameters_of(self, hyper_BDhw: Tensor | None, context_BDhw: Tensor | None) -> Tensor:
        """The parameter network on the features that there are, hyper first."""
        return self.parameter_network(torch.cat([f for f in (hyper_BDhw, context_BDhw) if f is not None], 1))

    def forward(
        self, y_BShw: Tensor, z_BZhw: Tensor | None, topk: int | None = None, visible_hw: Tensor | None = None
    ) -> Rates:
        """Code lengths of (noisy or quantised) latents."""
        return Rates(
            nats(y_BShw, self.distribution(y_BShw, z_BZhw, topk, visible_hw), self.spec.mixtures, self.count),
            None if z_BZhw is None or self.prior is None else -self.prior.mass(z_BZhw).log(),
        )

    def distribution(
        self, y_BShw: Tensor, z_BZhw: Tensor | None, topk: int | None = None, visible_hw: Tensor | None = None
    ) -> Tensor:
        """Parameters of every latent, from latents and z that are known."""
        hyper = None if self.hyper_decoder is None else self.hyper_decoder(z_BZhw, topk)
        context = None
        if self.context is not None:
            shown = (visible_hw,) if self.spec.two_pass else ()
            context = self.context(y_BShw, topk, *shown)
        return self.parameters_of(hyper, context)

    def training_topk(self, generator: torch.Generator) -> int | None:
        """k of one training step: uniform in {k // 2, ..., 2k - 1}, so that one model suits several k."""
        k = self.spec.attention.topk
        if k < 2:
            return k
        return int(torch.randint(k // 2, 2 * k, (), generator=generator))


class ImageCodec(nn.Module):
    """Picture to latents, their entropy model, and back."""

    def __init__(self, spec: CodecSpec) -> None:
        super().__init__()
        self.spec = spec
        if spec.transform == "conv":
            self.analysis: nn.Module = AnalysisTransform(spec.channels, spec.latents)
            self.synthesis: nn.Module = SynthesisTransform(spec.channels, spec.latents)
        else:
            self.analysis, self.synthesis = BlockDCTAnalysis(spec.latents), BlockDCTSynthesis(spec.latents)
        self.entropy = EntropyModel(spec)

    def forward(
        self, x_B3HW: Tensor, generator: torch.Generator, visible_hw: Tensor | None = None
    ) -> tuple[Tensor, Rates]:
        """Training: reconstruction from rounded latents, code lengths of noisy ones.

        A fixed transform (DCT) has integer latents from the start, and nothing but its rate to learn.
        """
        topk = self.entropy.training_topk(generator)
        y = self.analysis(x_B3HW)
        fixed = self.spec.transform == "dct"
        noisy = quantise(y) if fixed else add_noise(y, generator)
        encoder = self.entropy.hyper_encoder
        z = None if encoder is None else add_noise(encoder(noisy if fixed else y, topk), generator)
        rates = self.entropy(noisy, z, topk, visible_hw)
        return (noisy if fixed else self.synthesis(straight_through(y))), rates

    @torch.no_grad()
    def latents(self, x_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
        """What a file holds of a picture: integers y and z (None without side information)."""
        y = self.analysis(x_B3HW)
        y_hat, encoder = quantise(y), self.entropy.hyper_encoder
        if encoder is None:
            return y_hat, None
        return y_hat, quantise(encoder(y_hat if self.spec.transform == "dct" else y))

    def model_id(self) -> bytes:
        """Digest of specification, weights and integer tables: what a file must have been written with."""
        digest = hashlib.sha256(json.dumps(asdict(self.spec), sort_keys=True).encode())
        for table in (table_digest(), exp_digest()):
            digest.update(table.to_bytes(4, "big"))
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.digest()[:MODEL_ID_BYTES]


@contextmanager
def one_thread() -> Iterator[None]:
    """Run a block in one thread: sums of floats depend on how many take part."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class LatentCoder:
    """Latents to bytes and back, with an exact copy (exact.py) of a codec's entropy model on the CPU."""

    def __init__(self, entropy: EntropyModel) -> None:
        if entropy.spec.mixtures != 1:
            raise ValueError("files hold latents of one Gaussian each; this model mixes several")
        self.spec = entropy.spec
        self.entropy: EntropyModel = exact(copy.deepcopy(entropy).cpu().eval())  # type: ignore[assignment]
        self.masses_C256 = None
        if self.entropy.prior is not None:
            with torch.no_grad():
                self.masses_C256 = self.entropy.prior.double().masses()

    @torch.no_grad()
    def encode(self, y_1Shw: Tensor, z_1Zhw: Tensor | None) -> bytes:
        """Bytes of integer latents of one picture."""
        coder = SymbolEncoder()
        y_1Shw = y_1Shw.float().cpu()
        hyper = None
        if z_1Zhw is not None:
            z_1Zhw = z_1Zhw.float().cpu()
            coder.encode(z_1Zhw.flatten().numpy(), self._side(z_1Zhw.shape[2] * z_1Zhw.shape[3]))
            hyper = self.entropy.hyper_decoder(z_1Zhw)  # type: ignore[misc]
        context = None if self.entropy.context is None else self.entropy.context(y_1Shw)
        parameters_1Cn = self.entropy.parameters_of(hyper, context).flatten(2)
        for positions in self._batches(*y_1Shw.shape[2:]):
            values = y_1Shw.flatten(2)[0, :, positions].T.flatten()
            coder.encode(values.numpy(), _frequencies(parameters_1Cn[:, :, positions]))
        return coder.to_bytes()

    @torch.no_grad()
    def decode(self, content: bytes, h: int, w: int) -> tuple[Tensor, Tensor | None]:
        """The integer latents `[1, S, h, w]` and z that `encode` was given."""
        coder, spec, entropy = SymbolDecoder(content), self.spec, self.entropy
        z = hyper = None
        if entropy.hyper_decoder is not None:
            shape = (1, spec.hyper_channels, h >> RESAMPLINGS, w >> RESAMPLINGS)
            z = torch.from_numpy(coder.decode(self._side(shape[2] * shape[3]))).float().view(shape)
            hyper = entropy.hyper_decoder(z)
        y = torch.zeros(1, spec.latents, h, w)
        if spec.serial:
            self._decode_serial(coder, y, hyper)
        else:
            self._decode_passes(coder, y, hyper)
        return y, z

    def _decode_passes(self, coder: SymbolDecoder, y: Tensor, hyper: Tensor | None) -> None:
        """Without context all at once; in two passes the transformer runs for the second one only."""
        for number, positions in enumerate(self._batches(*y.shape[2:])):
            context = None
            if self.spec.two_pass:
                context = y.new_zeros(1, self.spec.attention.dim, *y.shape[2:])
                if number:
                    assert self.entropy.context is not None
                    context = self.entropy.context(y)
            here = (None if f is None else f.flatten(2)[:, :, None, positions] for f in (hyper, context))
            values = coder.decode(_frequencies(self.entropy.parameters_of(*here).flatten(2)))
            y.flatten(2)[0, :, positions] = torch.from_numpy(values).float().view(-1, self.spec.latents).T

    def _decode_serial(self, coder: SymbolDecoder, y: Tensor, hyper: Tensor | None) -> None:
        """Position by position in raster order."""
        h, w = y.shape[2:]
        decoding = self.entropy.context.decoding(h, w)  # type: ignore[union-attr,operator]
        for row in range(h):
            for column in range(w):
                context = decoding.feature(y, row, column)[:, :, None, None]
                here = None if hyper is None else hyper[:, :, row : row + 1, column : column + 1]
                parameters = self.entropy.parameters_of(here, context).flatten(2)
                y[0, :, row, column] = torch.from_numpy(coder.decode(_frequencies(parameters))).float()

    def _side(self, positions: int) -> Frequencies:
        assert self.masses_C256 is not None
        return channel_frequencies(self.masses_C256, positions)

    def _batches(self, h: int, w: int) -> list[Tensor]:
        """Positions that are coded together: all, a half of the checkerboard, or one."""
        if self.spec.serial:
            return list(torch.arange(h * w).split(1))
        if not self.spec.two_pass:
            return [torch.arange(h * w)]
        visible = checkerboard(h, w).flatten()
        return [visible.nonzero()[:, 0], (~visible).nonzero()[:, 0]]


def _frequencies(parameters_1Cn: Tensor) -> Frequencies:
    """Of the latents at n positions, all channels of a position together."""
    _, mean, log_sigma = split_parameters(parameters_1Cn, 1, 2)
    return gaussian_frequencies(*(p[0, :, 0].T.flatten() for p in (mean, log_sigma)))
