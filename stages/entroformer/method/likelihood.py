"""Probabilities of quantised latents, and the integer CDFs with which files are coded.

A latent v in -128 .. 127 has the mass that a mixture of K densities puts on (v - 1/2, v + 1/2); the two outermost
masses take the tails, so that the 256 of them sum to one (the authors' sum to about two: card, "Parameter network").
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import ndtr
from torch import Tensor, nn

from stages.entroformer.method.quantise import HIGH, LOW

Density = Literal["gaussian", "logistic", "laplace"]
LOG_SIGMA_MIN = -7.0
MASS_MIN = 1e-12


def _gaussian(t: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-t / math.sqrt(2))


def _laplace(t: Tensor) -> Tensor:
    tail = 0.5 * torch.exp(-t.abs())
    return torch.where(t < 0, tail, 1 - tail)


CDFS: dict[Density, Callable[[Tensor], Tensor]] = {
    "gaussian": _gaussian,
    "logistic": torch.sigmoid,
    "laplace": _laplace,
}


def interval_mass(v: Tensor, mean: Tensor, log_sigma: Tensor, density: Density = "gaussian") -> Tensor:
    """Mass on (v - 1/2, v + 1/2), the tails folded into -128 and 127, at least 1e-12.

    By symmetry it is computed on the left of the mean, where the difference of CDFs keeps its precision.
    """
    cdf, inverse_sigma = CDFS[density], torch.exp(-log_sigma.clamp_min(LOG_SIGMA_MIN))
    upper, lower = v + 0.5 - mean, v - 0.5 - mean
    upper = torch.where(v >= HIGH, math.inf, upper)
    lower = torch.where(v <= LOW, -math.inf, lower)
    mirrored = v > mean
    left = torch.where(mirrored, -upper, lower)
    right = torch.where(mirrored, -lower, upper)
    return (cdf(right * inverse_sigma) - cdf(left * inverse_sigma)).clamp_min(MASS_MIN)


def split_parameters(
    parameters_BCn: Tensor, mixtures: int, count: int
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Channels as (parameter, latent, mixture): (log weights or None, means, log sigmas), each `[B, S, K, h, w]`.

    With two parameters they are log sigma, then mean; with three the weights' logits, mean, log sigma.
    """
    parts = parameters_BCn.unflatten(1, (count, -1, mixtures)).unbind(1)
    if count == 2:
        log_sigma, mean = parts
        return None, mean, log_sigma
    logits, mean, log_sigma = parts
    return logits.log_softmax(2), mean, log_sigma


def nats(
    v_BS: Tensor, parameters_BC: Tensor, mixtures: int = 1, count: int = 2, density: Density = "gaussian"
) -> Tensor:
    """Code length of every latent `[B, S, h, w]` under the parameter network's output."""
    log_weight, mean, log_sigma = split_parameters(parameters_BC, mixtures, count)
    log_mass = interval_mass(v_BS[:, :, None], mean, log_sigma, density).log()
    return -log_mass[:, :, 0] if log_weight is None else -(log_weight + log_mass).logsumexp(2)


class ChannelGaussianPrior(nn.Module):
    """One Gaussian per channel of z, learned: what the released weights have."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean_C = nn.Parameter(torch.zeros(channels))
        self.log_sigma_C = nn.Parameter(torch.zeros(channels))

    def mass(self, z_BChw: Tensor) -> Tensor:
        """Probability of every (noisy) value."""
        return interval_mass(z_BChw, self.mean_C[:, None, None], self.log_sigma_C[:, None, None])

    def masses(self) -> Tensor:
        """Of every channel the masses of -128 .. 127: `[C, 256]`."""
        return interval_mass(_symbols(self.mean_C), self.mean_C[:, None], self.log_sigma_C[:, None])


class DeepFactorisedPrior(nn.Module):
    """A learned monotone CDF per channel (Balle et al. 2018, appendix 6.1): 1 -> 3 -> 3 -> 3 -> 3 -> 1 units.

    A layer is x -> softplus(H) x + b, then x + tanh(a) tanh(x) except in the last; the CDF is its sigmoid.
    """

    def __init__(
        self, channels: int, filters: tuple[int, ...] = (3, 3, 3, 3), initial_scale: float = 10.0
    ) -> None:
        super().__init__()
        units = (1, *filters, 1)
        scale = initial_scale ** (1 / (len(filters) + 1))
        self.matrices, self.biases, self.factors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in pairwise(units):
            start = math.log(math.expm1(1 / scale / outputs))
            self.matrices.append(nn.Parameter(torch.full((channels, outputs, inputs), start)))
            self.biases.append(nn.Parameter(torch.rand(channels, outputs, 1) - 0.5))
            if outputs != 1:
                self.factors.append(nn.Parameter(torch.zeros(channels, outputs, 1)))

    def logits(self, x_C1n: Tensor) -> Tensor:
        """Logit of the CDF at points of every channel: `[C, 1, n]`."""
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            x_C1n = F.softplus(matrix) @ x_C1n + bias
            if i < len(self.factors):
                x_C1n = x_C1n + self.factors[i].tanh() * x_C1n.tanh()
        return x_C1n

    def interval(self, x_C1n: Tensor) -> Tensor:
        """Mass on (x - 1/2, x + 1/2), computed in the tail where both sigmoids are small."""
        lower, upper = self.logits(x_C1n - 0.5), self.logits(x_C1n + 0.5)
        sign = -(lower + upper).detach().sign()
        return (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs()

    def mass(self, z_BChw: Tensor) -> Tensor:
        """Probability of every (noisy) value."""
        per_channel = z_BChw.transpose(0, 1).flatten(1)[:, None]
        shape = z_BChw.transpose(0, 1).shape
        return self.interval(per_channel).reshape(shape).transpose(0, 1).clamp_min(MASS_MIN)

    def masses(self) -> Tensor:
        """Of every channel the masses of -128 .. 127: `[C, 256]`; the coder gives the tails to all alike."""
        channels = len(self.matrices[0])
        return self.interval(_symbols(self.matrices[0]).expand(channels, 1, -1))[:, 0].clamp_min(MASS_MIN)


def _symbols(like: Tensor) -> Tensor:
    return torch.arange(LOW, HIGH + 1, dtype=like.dtype, device=like.device)


# Integer tables. A latent's mean is rounded to 1/32 and its log sigma to 1/16, which names a table; the table's symbols are
# offsets from the whole part of the mean, so that few tables serve all latents, and every v in -128 .. 127 has a symbol
# whatever the mean. A table has 24 bits, and no symbol less than 1 of 2^24.
PRECISION = 24
FRACTIONS, LOG_SIGMA_STEPS, LOG_SIGMA_MAX = 32, 16, 6.0
LEVELS = round((LOG_SIGMA_MAX - LOG_SIGMA_MIN) * LOG_SIGMA_STEPS) + 1
SYMBOLS = HIGH - LOW + 1
REACH = SYMBOLS + 1  # offsets on both sides; means are cut to one beyond the range of latents


@cache
def gaussian_tables() -> np.ndarray:
    """Integer frequencies of v - floor(mean) in -REACH .. REACH: int32 `[fraction * level, 2 REACH + 1]`."""
    fraction = np.arange(FRACTIONS)[:, None, None] / FRACTIONS
    sigma = np.exp(LOG_SIGMA_MIN + np.arange(LEVELS)[None, :, None] / LOG_SIGMA_STEPS)
    edge = np.arange(-REACH, REACH + 2)[None, None] - 0.5
    room = 2**PRECISION - (2 * REACH + 1)  # each symbol has one unit of its own beside its share of this
    cdf = np.rint(room * ndtr((edge - fraction) / sigma)).astype(np.int32)
    cdf[..., 0], cdf[..., -1] = 0, room  # the tails belong to the outermost symbols
    return (np.diff(cdf, axis=-1) + 1).reshape(FRACTIONS * LEVELS, -1)


def table_digest() -> int:
    """CRC-32 of the tables: part of what a file names as its model."""
    return zlib.crc32(gaussian_tables().tobytes())


@dataclass(frozen=True)
class Frequencies:
    """Of each of N symbols the table of integer frequencies that it is coded with, and the value of the table's first entry.

    `tables`: int `[T, symbols]`, each row sums to 2^24; `table_N`: rows; `first_N`: values.
    """

    tables: np.ndarray
    table_N: np.ndarray
    first_N: np.ndarray


def gaussian_frequencies(mean_N: Tensor, log_sigma_N: Tensor) -> Frequencies:
    """Of latents, from their means and log sigmas."""
    scaled = (mean_N.double().clamp(LOW - 1, HIGH + 1) * FRACTIONS + 0.5).floor().long().numpy()
    steps = (log_sigma_N.double().clamp(LOG_SIGMA_MIN, LOG_SIGMA_MAX) - LOG_SIGMA_MIN) * LOG_SIGMA_STEPS
    level = (steps + 0.5).floor().long().numpy()
    table_N = ((scaled % FRACTIONS) * LEVELS + level).astype(np.int16)
    return Frequencies(gaussian_tables(), table_N, scaled // FRACTIONS - REACH)


def channel_frequencies(masses_C256: Tensor, positions: int) -> Frequencies:
    """Of z `[C, h, w]`, flattened, from the float64 masses of its channels."""
    share = (masses_C256 / masses_C256.sum(1, keepdim=True)).numpy()
    cdf = np.zeros((len(share), SYMBOLS + 1), dtype=np.int64)
    cdf[:, 1:] = np.rint((2**PRECISION - SYMBOLS) * np.cumsum(share, 1))
    cdf[:, -1] = 2**PRECISION - SYMBOLS
    table_N = np.repeat(np.arange(len(share), dtype=np.int16), positions)
    return Frequencies(np.diff(cdf, axis=1) + 1, table_N, np.full(len(table_N), LOW))
