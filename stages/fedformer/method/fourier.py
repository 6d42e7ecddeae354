"""The Fourier blocks: FEB-f in place of self-attention, FEA-f in place of cross-attention (paper, section
3.2).

Two variants (card, "Which one to follow"). `official` is the released code with what it does differently
from the text: FEB-f writes mode m of its output to frequency m rather than back to where it came from; FEA-f
uses the keys as values and divides by D^2 a second time; both leave their result in the order (B, H, E, L),
whose memory the caller then reads as (B, L, D). `paper` is what the text says, initialised so that the
blocks matter from the start.

Shapes: B batch, L length, H heads, E head width, D = H E width, M modes (x of queries, y of keys), I and O a
    head's inputs and outputs.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stages.fedformer.method.block import Block
from stages.fedformer.method.modes import SelectedModes

Variant = Literal["official", "paper"]
Activation = Literal["tanh", "tanh_split", "softmax"]


def as_spectrum(x_BLHE: Tensor, modes: SelectedModes) -> Tensor:
    """Selected coefficients, laid out for products per head: `[H, M, B, E]`, complex."""
    x_BMD = modes(x_BLHE.flatten(2))
    return x_BMD.unflatten(2, x_BLHE.shape[2:]).permute(2, 1, 0, 3)


def as_signal(y_HMBO: Tensor, modes: SelectedModes, variant: Variant) -> Tensor:
    """Back to time: `[B, L, H, O]` (paper) or `[B, H, O, L]` (official), contiguous."""
    y_BLHO = modes.inverse(y_HMBO.permute(2, 1, 0, 3).flatten(2)).unflatten(2, (y_HMBO.shape[0], -1))
    return y_BLHO.permute(0, 2, 3, 1).contiguous() if variant == "official" else y_BLHO


def activate(score: Tensor, activation: Activation) -> Tensor:
    """Complex attention scores to weights: complex tanh (has poles), tanh of both parts, or softmax of
    magnitudes.
    """
    match activation:
        case "tanh":
            return complex_tanh(score)
        case "tanh_split":
            return torch.complex(score.real.tanh(), score.imag.tanh())
        case "softmax":
            weight = score.abs().softmax(-1)
            return torch.complex(weight, torch.zeros_like(weight))


class _ComplexTanh(torch.autograd.Function):
    """tanh(a + ib) = (t + i s c (1 - t^2)) / (c^2 + t^2 s^2) with t = tanh a, s = sin b, c = cos b.

    torch's own complex tanh is computed number by number and took a third of a training step; this is real
    arithmetic on whole arrays, and keeps nothing but the result.
    """

    @staticmethod
    def forward(context: Any, z: Tensor) -> Tensor:
        t, s, c = z.real.tanh(), z.imag.sin(), z.imag.cos()
        t2 = t.square()
        share = (c.square() + t2 * s.square()).reciprocal_()
        y = torch.complex(t * share, s.mul_(c).mul_(1 - t2).mul_(share))
        context.save_for_backward(y)
        return y

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (y,) = context.saved_tensors
        return gradient * (1 - y * y).conj()


def complex_tanh(z: Tensor) -> Tensor:
    """Hyperbolic tangent of complex numbers, elementwise."""
    return _ComplexTanh.apply(z)


class SpectralWeight(nn.Module):
    """A complex matrix per head and mode, `[H, M, I, O]`; kept as real and imaginary parts, so that every
    optimizer,
    precision and communication backend can handle it.
    """

    def __init__(self, heads: int, head_width: int, modes: int, variant: Variant) -> None:
        super().__init__()
        shape = (heads, modes, head_width, head_width, 2)
        if variant == "official":
            weight = torch.rand(shape) / (heads * head_width) ** 2
        else:
            weight = torch.randn(shape) * (0.5 / math.sqrt(head_width))
        self.weight_HMIO2 = nn.Parameter(weight)

    def forward(self, x_HMBI: Tensor) -> Tensor:
        """One batched complex product over (head, mode): `[H, M, B, O]`."""
        return x_HMBI @ torch.view_as_complex(self.weight_HMIO2)


class FourierBlock(Block):
    """FEB-f: keep M frequencies of the query, multiply each by a learned matrix per head, go back to time.

    Args:
        width: D; a multiple of `heads`.
        heads: H.
        length: L.
        index: selected frequencies (`select_modes`).
        variant: see the module's text.
    """

    reads = ("query",)

    def __init__(self, width: int, heads: int, length: int, index: list[int], variant: Variant) -> None:
        super().__init__()
        self.variant: Variant = variant
        positions = list(range(len(index))) if variant == "official" else None
        self.modes = SelectedModes(length, index, positions, orthonormal=variant == "paper")
        self.mix = SpectralWeight(heads, width // heads, len(index), variant)

    def forward(self, q_BLHE: Tensor, k_BLHE: Tensor | None, v_BLHE: Tensor | None) -> Tensor:
        """`[B, H, E, L]` (official) or `[B, L, H, E]` (paper); keys and values are not looked at."""
        return as_signal(self.mix(as_spectrum(q_BLHE, self.modes)), self.modes, self.variant)


class FourierCrossAttention(Block):
    """FEA-f: attention between the selected frequencies of queries and keys, then a learned matrix per head
    and mode.

    Args:
        width: D; a multiple of `heads`.
        heads: H.
        length_q: length of the queries.
        length_kv: length of keys and values.
        index_q: selected frequencies of the queries.
        index_kv: selected frequencies of keys and values.
        activation: from scores to weights.
        variant: see the module's text.
    """

    def __init__(
        self, width: int, heads: int, length_q: int, length_kv: int, index_q: list[int], index_kv: list[int],
        activation: Activation, variant: Variant,
    ) -> None:  # fmt: skip
        super().__init__()
        self.width, self.activation, self.variant = width, activation, variant
        self.reads = ("query", "key") if variant == "official" else ("query", "key", "value")
        self.modes_q = SelectedModes(length_q, index_q, orthonormal=variant == "paper")
        self.modes_kv = SelectedModes(length_kv, index_kv, orthonormal=variant == "paper")
        self.mix = SpectralWeight(heads, width // heads, len(index_q), variant)

    def forward(self, q_BLHE: Tensor, k_BSHE: Tensor, v_BSHE: Tensor | None) -> Tensor:
        """`[B, H, E, L]` (official) or `[B, L, H, E]` (paper)."""
        q_HBxE = as_spectrum(q_BLHE, self.modes_q).transpose(1, 2)
        k_HByE = as_spectrum(k_BSHE, self.modes_kv).transpose(1, 2)
        weight_HBxy = activate(q_HBxE @ k_HByE.transpose(-1, -2), self.activation)
        if v_BSHE is None or self.variant == "official":
            y_HBxE = weight_HBxy @ k_HByE / self.width**2
        else:
            y_HBxE = weight_HBxy @ as_spectrum(v_BSHE, self.modes_kv).transpose(1, 2) / k_HByE.shape[2]
        return as_signal(self.mix(y_HBxE.transpose(1, 2)), self.modes_q, self.variant)
