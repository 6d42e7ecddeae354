"""The multiwavelet blocks: FEB-w in place of self-attention, FEA-w in place of cross-attention (paper,
section 3.3).

A series of c channels of k polynomial coefficients is split again and again into averages and details of
half the length; each level is handled in Fourier space, and the levels are put together again. `variant` as
in `fourier.py`: `official` uses the keys as values in FEA-w and divides by D^2, `paper` does neither and
starts with weights that matter.

Shapes: B batch, N length (padded to a power of two), c channels, k polynomials, M modes, H heads, E head
    width, D = H E width.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn

from stages.fedformer.method.block import Block
from stages.fedformer.method.fourier import Activation, Variant, activate
from stages.fedformer.method.modes import SelectedModes
from stages.fedformer.method.multiwavelet_filters import Base, multiwavelet_filters


class Pyramid(nn.Module):
    """One step down (split) and up (merge) between the levels.

    Args:
        base: family of polynomials.
        k: how many.
        length: of the series before padding.
        skipped: levels that are left out at the coarse end.
    """

    split_matrix: Tensor  # [2k, 2k], from (even, odd) to (details, averages)
    merge_matrix: Tensor  # [2k, 2k], from (averages, details) to (even, odd)

    def __init__(self, base: Base, k: int, length: int, skipped: int) -> None:
        super().__init__()
        self.padded = 2 ** math.ceil(math.log2(length))
        self.depth = max(0, math.floor(math.log2(length)) - skipped)
        f = multiwavelet_filters(base, k)
        down = [torch.from_numpy(matrix.T) for matrix in (f.g0, f.h0, f.g1, f.h1)]
        up = [torch.from_numpy(m) for m in (f.h0 @ f.phi0, f.h1 @ f.phi1, f.g0 @ f.phi0, f.g1 @ f.phi1)]
        self.register_buffer("split_matrix", _blocks(down))
        self.register_buffer("merge_matrix", _blocks(up))

    @property
    def lengths(self) -> list[int]:
        """Of the levels, finest first."""
        return [self.padded >> level for level in range(1, self.depth + 1)]

    def pad(self, x_BNck: Tensor) -> Tensor:
        """Up to a power of two, by the series' own first rows."""
        return torch.cat([x_BNck, x_BNck[:, : self.padded - x_BNck.shape[1]]], dim=1)

    def split(self, x_BNck: Tensor) -> tuple[Tensor, Tensor]:
        """Details and averages, both of half the length."""
        pairs = torch.cat([x_BNck[:, ::2], x_BNck[:, 1::2]], dim=-1)
        details, averages = (pairs @ self.split_matrix).chunk(2, dim=-1)
        return details, averages

    def merge(self, averages_BNck: Tensor, details_BNck: Tensor) -> Tensor:
        """The series of twice the length."""
        pairs = torch.cat([averages_BNck, details_BNck], dim=-1) @ self.merge_matrix
        return pairs.unflatten(-1, (2, -1)).transpose(2, 3).flatten(1, 2)


def _blocks(quarters: list[Tensor]) -> Tensor:
    a, b, c, d = quarters
    return torch.cat([torch.cat([a, b], dim=1), torch.cat([c, d], dim=1)]).float()


def levels_of(modes: nn.ModuleList) -> list[SelectedModes]:
    """The transforms of the levels, finest first."""
    return cast(list[SelectedModes], list(modes))


class SpectralKernel(nn.Module):
    """A complex matrix between all c k channels per mode, `[M, ck, ck]`, shared by all levels."""

    def __init__(self, channels: int, modes: int, variant: Variant) -> None:
        super().__init__()
        shape = (modes, channels, channels, 2)
        if variant == "official":
            weight = torch.rand(shape) / channels**2
        else:
            weight = torch.randn(shape) * (0.5 / math.sqrt(channels))
        self.weight_MIO2 = nn.Parameter(weight)

    def forward(self, x_BMI: Tensor) -> Tensor:
        """`[B, M, O]`, complex, of the lowest M modes."""
        matrix_MIO = torch.view_as_complex(self.weight_MIO2[: x_BMI.shape[1]])
        return (x_BMI.transpose(0, 1) @ matrix_MIO).transpose(0, 1)


class MultiWaveletTransform(Block):
    """FEB-w, on the values alone.

    Args:
        width: D.
        length: N before padding.
        c: channels.
        k: polynomials.
        alpha: modes kept per level, from the lowest.
        skipped: coarse levels left out (L in the paper's code).
        base: family of polynomials.
        variant: see the module's text.
    """

    reads = ("value",)

    def __init__(
        self, width: int, length: int, c: int, k: int, alpha: int, skipped: int, base: Base, variant: Variant
    ) -> None:
        super().__init__()
        self.c, self.k = c, k
        self.enter, self.leave = nn.Linear(width, c * k), nn.Linear(c * k, width)
        self.pyramid = Pyramid(base, k, length, skipped)
        ranges = [(n, list(range(min(alpha, n // 2 + 1)))) for n in self.pyramid.lengths]
        self.modes = nn.ModuleList(
            SelectedModes(n, index, orthonormal=variant == "paper") for n, index in ranges
        )
        # A, B, C of the released code: details to details, averages to details, details to averages
        self.details = SpectralKernel(c * k, alpha, variant)
        self.averages = SpectralKernel(c * k, alpha, variant)
        self.up = SpectralKernel(c * k, alpha, variant)
        self.coarsest = nn.Linear(k, k)

    def forward(self, q_BNHE: Tensor | None, k_BNHE: Tensor | None, v_BNHE: Tensor) -> Tensor:
        """`[B, N, D]`; queries and keys are not looked at."""
        length = v_BNHE.shape[1]
        s_BNck = self.pyramid.pad(self.enter(v_BNHE.flatten(2)).unflatten(-1, (self.c, self.k)))
        levels = []
        for modes in levels_of(self.modes):
            d_BNck, s_BNck = self.pyramid.split(s_BNck)
            d_BMI, s_BMI = modes(d_BNck.flatten(2)), modes(s_BNck.flatten(2))
            up, down = (
                modes.inverse(self.up(d_BMI)),
                modes.inverse(self.details(d_BMI) + self.averages(s_BMI)),
            )
            levels.append((up.view_as(d_BNck), down.view_as(d_BNck)))
        s_BNck = self.coarsest(s_BNck)
        for up, down in reversed(levels):
            s_BNck = self.pyramid.merge(s_BNck + up, down)
        return self.leave(s_BNck[:, :length].flatten(2))


class MultiWaveletCross(Block):
    """FEA-w: attention in Fourier space, without weights, on every level.

    Args:
        width: D.
        length_q: length of the queries; keys and values are cut or filled with zeros to it.
        c: channels.
        k: polynomials, each a head of the attention.
        modes: modes kept per level, from the lowest, below the level's Nyquist bin.
        skipped: coarse levels left out.
        base: family of polynomials.
        activation: from scores to weights.
        variant: see the module's text.
    """

    def __init__(
        self, width: int, length_q: int, c: int, k: int, modes: int, skipped: int, base: Base,
        activation: Activation, variant: Variant,
    ) -> None:  # fmt: skip
        super().__init__()
        self.c, self.k, self.width, self.activation, self.variant = c, k, width, activation, variant
        self.reads = ("query", "key") if variant == "official" else ("query", "key", "value")
        self.enter = nn.ModuleDict({name: nn.Linear(width, c * k) for name in self.reads})
        self.leave = nn.Linear(c * k, width)
        self.pyramid = Pyramid(base, k, length_q, skipped)
        coarsest = self.pyramid.padded >> self.pyramid.depth
        self.modes = nn.ModuleList(
            SelectedModes(n, list(range(min(n // 2, modes))), orthonormal=variant == "paper")
            for n in [*self.pyramid.lengths, coarsest]
        )

    def forward(self, q_BNHE: Tensor, k_BSHE: Tensor, v_BSHE: Tensor | None) -> Tensor:
        """`[B, N, D]`."""
        length = q_BNHE.shape[1]
        inputs = {"query": q_BNHE, "key": k_BSHE, "value": v_BSHE}
        series = [self._start(name, inputs[name], length) for name in self.reads]
        levels = []
        for modes in levels_of(self.modes)[:-1]:
            pairs = [self.pyramid.split(x_BNck) for x_BNck in series]
            series = [averages for _, averages in pairs]
            # two of the paper's four attentions are equal: without weights both are that of the details
            up = self.attend([details for details, _ in pairs], modes)
            levels.append((up, up + self.attend(series, modes)))
        s_BNck = self.attend(series, levels_of(self.modes)[-1])
        for up, down in reversed(levels):
            s_BNck = self.pyramid.merge(s_BNck + up, down)
        return self.leave(s_BNck[:, :length].flatten(2))

    def _start(self, name: str, x_BSHE: Tensor | None, length: int) -> Tensor:
        assert x_BSHE is not None
        x_BSck = self.enter[name](x_BSHE.flatten(2)).unflatten(-1, (self.c, self.k))[:, :length]
        missing = length - x_BSck.shape[1]
        return self.pyramid.pad(nn.functional.pad(x_BSck, (0, 0, 0, 0, 0, missing)))

    def attend(self, series: list[Tensor], modes: SelectedModes) -> Tensor:
        """Attention between frequencies, `[B, N, c, k]`; `series` are queries, keys and, in the paper's
        variant, values.
        """
        spectra = [modes(x.flatten(2)).unflatten(-1, (self.c, self.k)).permute(3, 0, 1, 2) for x in series]
        q_kBMc, k_kBMc, v_kBMc = spectra[0], spectra[1], spectra[-1]
        weight_kBxy = activate(q_kBMc @ k_kBMc.transpose(-1, -2), self.activation)
        y_BMck = (weight_kBxy @ v_kBMc).permute(1, 2, 3, 0)
        share = self.width**2 if self.variant == "official" else max(1, y_BMck.shape[1])
        return modes.inverse(y_BMck.flatten(2) / share).view_as(series[0])
