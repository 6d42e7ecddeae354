"""Entropy models whose numbers are the same to the last bit in any order of summation: what files are coded with.

A decoder has to compute the very numbers that the encoder had, though its batches have other shapes, its machine other
threads and instructions. So every sum here is over integers, carried in floats, that stay below 2^24 (float32) or 2^53
(float64): such a sum is exact whatever its order. Between the sums there is only what IEEE 754 defines to the last bit,
element by element (+, *, /, square root, rounding, comparison), and a table for exp. After the integer networks of Balle,
Johnston and Minnen, ICLR 2019; here floats carry the integers, because fast matrix products for them are everywhere.

`exact` turns a trained entropy model into such a one: weights are rounded once; activations where they enter a sum, each
token by its own largest component, so that a token has the same numbers alone (serial decoding) and among all.

Shapes: B batch, n tokens, m keys, a heads, c queries of one chunk, d width of a head, K inputs and M outputs of a layer.
"""

import math
import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.entroformer.method.attention import AttentionBlock, Layout, SelfAttention, to_grid
from stages.entroformer.method.context import CONTEXT_KERNEL, MaskedConvContext, SerialDecoding

# Layers with more inputs than this are summed in float64: 24 bits shared by so many terms would leave few for each.
WIDE = 1024
MANTISSA = {torch.float32: 24, torch.float64: 53}
ACTIVATION_LEVELS = {torch.float32: 2**9 - 1, torch.float64: 2**20 - 1}  # largest integer of an activation
NORM_LEVELS = 2**20  # of a token in LayerNorm: sums of squares stay below 2^53 up to 8192 components
# Attention weights: exp in steps of 1/1024 of its argument, as integers up to 2^14; a row of weights sums to less than 2^15.
EXP_STEPS, EXP_PEAK, ROW_SUM = 1024, 2**14, 2**15 - 1
VALUE_LEVELS = 2**9 - 1  # of attention's values: VALUE_LEVELS * ROW_SUM < 2^24
SMALLEST = 1e-30  # what is smaller counts as this: quotients and products stay away from the ends of float32
CHUNK_SCORES = 2**18  # scores at once: they stay in the cache, and bound the memory


def exact(model: nn.Module) -> nn.Module:
    """Replace, in place and in all of a trained model, what sums floats; returns the model, or what replaces all of it."""
    if isinstance(model, nn.Linear):
        return ExactLinear(model.weight, model.bias)
    if isinstance(model, nn.Conv2d):
        return ExactConv(model)
    if isinstance(model, nn.ConvTranspose2d):
        return ExactTransposedConv(model)
    if isinstance(model, nn.LayerNorm):
        return ExactLayerNorm(model)
    if isinstance(model, MaskedConvContext):
        return ExactMaskedConv(model)
    if isinstance(model, AttentionBlock):
        model.attention = ExactAttention(model.attention, model.attention_norm)
    for name, child in model.named_children():
        setattr(model, name, exact(child))
    return model


def settle(x: Tensor) -> Tensor:
    """Keep 10 bits of positive numbers, rounded up, so that last bits of the sum that gave them do not matter."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 1024 + 0.5).ceil() / 1024, exponent)


def to_integers(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Along the last axis: integers up to `levels`, and what to multiply them by, `[..., 1]`."""
    scale = x.abs().amax(-1, keepdim=True).clamp_min(SMALLEST) / levels
    return (x / scale).round_(), scale


class ExactLinear(nn.Module):
    """A linear layer `[..., K]` -> `[..., M]` with an exact sum.

    Each row of weights is scaled so that its absolute sum times the largest activation stays below the mantissa: no
    order of summation can leave the integers that the float type represents.
    """

    def __init__(self, weight_MK: Tensor, bias_M: Tensor | None) -> None:
        super().__init__()
        inputs = weight_MK.shape[1]
        self.dtype = torch.float32 if inputs <= WIDE else torch.float64
        self.levels = ACTIVATION_LEVELS[self.dtype]
        room = (
            2 ** MANTISSA[self.dtype] - 1
        ) // self.levels - inputs / 2  # rounding adds at most 1/2 a weight
        weight = weight_MK.detach().double()
        scale_M1 = settle(weight.abs().sum(1, keepdim=True).clamp_min(SMALLEST) / room)
        self.weight_MK = (weight / scale_M1).round().to(self.dtype)
        self.scale_M = scale_M1[:, 0].to(self.dtype)
        self.bias_M = torch.zeros(()) if bias_M is None else bias_M.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        """The layer; float32."""
        integers, scale = to_integers(x.to(self.dtype), self.levels)
        return (F.linear(integers, self.weight_MK) * scale * self.scale_M).float() + self.bias_M


class ExactConv(nn.Module):
    """A convolution as a linear layer on the patch of every position."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.linear = ExactLinear(conv.weight.flatten(1), conv.bias)
        self.kernel, self.padding, self.stride = conv.kernel_size, conv.padding, conv.stride

    def forward(self, x_BChw: Tensor) -> Tensor:
        """The layer; float32."""
        patches_BKn = F.unfold(x_BChw, self.kernel, padding=self.padding, stride=self.stride)  # type: ignore[arg-type]
        h, w = (
            (x_BChw.shape[2 + i] + 2 * int(self.padding[i]) - self.kernel[i]) // self.stride[i] + 1
            for i in (0, 1)
        )
        return to_grid(self.linear(patches_BKn.transpose(1, 2)), h, w)


class ExactTransposedConv(nn.Module):
    """A transposed convolution: patches of every position, added where they overlap; one scale for the whole grid."""

    def __init__(self, conv: nn.ConvTranspose2d) -> None:
        super().__init__()
        weight_CMk = conv.weight.detach().double().flatten(2)
        self.levels = ACTIVATION_LEVELS[torch.float64]
        room = (2 ** MANTISSA[torch.float64] - 1) // self.levels - weight_CMk[:, 0].numel() / 2
        self.scale_M = settle(weight_CMk.abs().sum((0, 2)).clamp_min(SMALLEST) / room)
        self.weight_CK = (weight_CMk / self.scale_M[None, :, None]).round().flatten(1)
        self.bias_M = conv.bias.detach().float()  # type: ignore[union-attr]
        self.kernel, self.padding, self.stride = conv.kernel_size, conv.padding, conv.stride
        self.output_padding = conv.output_padding

    def forward(self, x_BChw: Tensor) -> Tensor:
        """The layer; float32."""
        integers_B1, scale_B1 = to_integers(x_BChw.double().flatten(1), self.levels)
        patches_BKn = self.weight_CK.T @ integers_B1.view(x_BChw.shape).flatten(2)
        size = [
            (x_BChw.shape[2 + i] - 1) * self.stride[i]
            - 2 * int(self.padding[i])
            + self.kernel[i]
            + self.output_padding[i]
            for i in (0, 1)
        ]
        sums = F.fold(patches_BKn, size, self.kernel, padding=self.padding, stride=self.stride)  # type: ignore[arg-type]
        scaled = sums * scale_B1[:, :, None, None] * self.scale_M[:, None, None]
        return scaled.float() + self.bias_M[:, None, None]


class ExactLayerNorm(nn.Module):
    """Layer normalisation whose two sums are over integers."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight_D, self.bias_D, self.eps = norm.weight.detach(), norm.bias.detach(), norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """The layer; float32."""
        integers, scale = to_integers(x.double(), NORM_LEVELS)
        mean = integers.sum(-1, keepdim=True) / x.shape[-1]
        variance = (integers * integers).sum(-1, keepdim=True) / x.shape[-1] - mean * mean
        deviation = (variance.clamp_min(0) + self.eps / (scale * scale)).sqrt()
        return ((integers - mean) / deviation).float() * self.weight_D + self.bias_D


class ExactMaskedConv(nn.Module):
    """`MaskedConvContext` on patches that end before their own position, the same for one position and for all."""

    def __init__(self, context: MaskedConvContext) -> None:
        super().__init__()
        self.before = int(context.before_55.sum())  # in raster order the patch's known positions come first
        self.linear = ExactLinear(
            context.conv.weight.flatten(2)[:, :, : self.before].flatten(1), context.conv.bias
        )

    def forward(self, y_BShw: Tensor, topk: int | None = None) -> Tensor:
        """Features of all positions at once."""
        h, w = y_BShw.shape[2:]
        patches = F.unfold(y_BShw, CONTEXT_KERNEL, padding=CONTEXT_KERNEL // 2)
        known_BKn = patches.unflatten(1, (-1, CONTEXT_KERNEL**2))[:, :, : self.before].flatten(1, 2)
        return to_grid(self.linear(known_BKn.transpose(1, 2)), h, w)

    def decoding(self, h: int, w: int) -> SerialDecoding:
        """Decoding of one grid, each position from its own patch."""
        return _ExactPatchDecoding(self)


class _ExactPatchDecoding:
    def __init__(self, context: ExactMaskedConv) -> None:
        self.context = context

    def feature(self, y_BShw: Tensor, row: int, column: int) -> Tensor:
        reach = CONTEXT_KERNEL // 2
        w = y_BShw.shape[3]
        top, left = max(0, row - reach), max(0, column - reach)
        patch = y_BShw[:, :, top : row + 1, left : column + reach + 1]
        missing = (left - column + reach, max(0, column + reach + 1 - w), top - row + reach, 0)
        known = F.pad(patch, missing).flatten(2)[:, :, : self.context.before]
        return self.context.linear(known.flatten(1))


class ExactAttention(SelfAttention):
    """Top-k attention with exact sums, a chunk of queries at a time.

    Scores are compared where they tie exactly or not at all: equal tokens have equal numbers here.
    """

    def __init__(self, attention: SelfAttention, norm: nn.LayerNorm) -> None:
        super().__init__(attention.spec)
        # one layer of three outputs: its inputs are made integers once
        projections = (attention.query, attention.key, attention.value)
        self.projection = ExactLinear(torch.cat([layer.weight for layer in projections]), None)
        self.output = ExactLinear(attention.output.get_parameter("weight"), None)
        del self.query, self.key, self.value
        # A normalised token n has |n| <= sqrt(D), so a value W (gamma n + beta) is at most so large, per channel. Its
        # scale must not depend on the other tokens, of which serial decoding does not have all yet.
        weight = attention.value.weight.detach().double()
        reach = (weight * norm.weight.detach()).norm(dim=1) * math.sqrt(attention.spec.dim)
        bound = reach + (weight @ norm.bias.detach().double()).abs()
        self.value_scale_a1d = (
            settle(bound.clamp_min(SMALLEST) / VALUE_LEVELS).float().view(attention.spec.heads, 1, -1)
        )
        self.levels = math.isqrt(
            (2 ** MANTISSA[torch.float32] - 1) // attention.spec.dim_head
        )  # of queries and keys

    def split(self, x_BnD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each `[B, a, n, d]`."""
        parts = self.projection(x_BnD).unflatten(-1, (3, self.spec.heads, -1))
        return tuple(part.transpose(1, 2) for part in parts.unbind(2))

    def attend(
        self,
        q_Band: Tensor,
        k_Band: Tensor,
        v_Band: Tensor,
        layout: Layout,
        table_Pd: Tensor | None,
        topk: int,
    ) -> Tensor:
        """Weighted values of every query: `[B, a, n, d]`."""
        q_Band, q_scale = to_integers(q_Band, self.levels)
        k_Band, k_scale = to_integers(k_Band, self.levels)
        v_Band = (v_Band / self.value_scale_a1d).round().clamp(-VALUE_LEVELS, VALUE_LEVELS)
        table = None if table_Pd is None else to_integers(table_Pd, self.levels)
        at = slice(None) if layout.keys_m is None else layout.keys_m
        # scores without the positive factor that a query's own row shares; exp applies it
        factor = q_scale * self.spec.scale
        keys_Badm, keys_scale = k_Band[:, :, at].transpose(-1, -2), k_scale[:, :, at].transpose(-1, -2)
        # values of all keys, then (where queries also see themselves) of all queries, to be picked from by row
        values_Vd = v_Band[:, :, at].flatten(0, 2)
        if layout.own:
            values_Vd = torch.cat([values_Vd, v_Band.flatten(0, 2)])
        near_nN, entry_nN = layout.near
        chunk = max(1, CHUNK_SCORES // (self.spec.heads * (keys_Badm.shape[-1] + 1)))
        parts = []
        for start in range(0, q_Band.shape[2], chunk):
            rows = slice(start, start + chunk)
            q_Bacd = q_Band[:, :, rows]
            scores = (q_Bacd @ keys_Badm).mul_(keys_scale)
            if layout.own:
                own = (q_Bacd * k_Band[:, :, rows]).sum(-1, keepdim=True) * k_scale[:, :, rows]
            if table is not None:
                # nearly all keys are far and share entry 0: added to all, then the few near ones are put right
                relative_BacP = (q_Bacd @ table[0].T) * table[1][:, 0]
                at_BacN = near_nN[rows].expand(*scores.shape[:3], -1)
                near = scores.gather(-1, at_BacN)
                near += relative_BacP.gather(-1, entry_nN[rows].expand_as(at_BacN))
                scores += relative_BacP[..., :1]
                scores.scatter_(-1, at_BacN, near)
                if layout.own:
                    centre = len(table[0]) // 2
                    own = own + relative_BacP[..., centre : centre + 1]
            mask_cm = None if layout.mask_nm is None else layout.mask_nm[rows]
            if layout.own:
                if mask_cm is not None:  # keys are allowed to all, only "itself" is not
                    own = own.masked_fill(~mask_cm[:, -1:], -math.inf)
                scores = torch.cat([scores, own], -1)
            elif mask_cm is not None:
                scores.masked_fill_(~mask_cm, -math.inf)
            chosen = choose(scores, factor[:, :, rows], topk)
            head = chosen.row // scores.shape[2]
            index = head * keys_Badm.shape[-1] + chosen.key
            if layout.own:
                query = head * q_Band.shape[2] + start + chosen.row % scores.shape[2]
                heads, keys = q_Band.shape[0] * self.spec.heads, keys_Badm.shape[-1]
                index = np.where(chosen.key < keys, index, heads * keys + query)
            parts.append(chosen.mean_of(values_Vd, index).view(*scores.shape[:3], -1))
        return torch.cat(parts, 2) * self.value_scale_a1d


@dataclass(frozen=True)
class Chosen:
    """Which keys R queries attend to: of each such pair, sorted by query, `row`, `key` and integer `weight`.

    A row's weights sum to at most `ROW_SUM`.
    """

    rows: int
    row: np.ndarray
    key: np.ndarray
    weight: np.ndarray

    def mean_of(self, values_Vd: Tensor, index: np.ndarray) -> Tensor:
        """Of every row the weighted mean of integer values, `[R, d]`; `index` names the value of each pair."""
        ends = np.cumsum(np.bincount(self.row, minlength=self.rows))
        summed_Rd = F.embedding_bag(
            torch.from_numpy(index),
            values_Vd,
            torch.from_numpy(np.concatenate([[0], ends])),
            mode="sum",
            per_sample_weights=torch.from_numpy(self.weight.astype(np.float32)),
            include_last_offset=True,
        )
        total_R = torch.from_numpy(np.bincount(self.row, self.weight, minlength=self.rows)).float()
        return summed_Rd / total_R[:, None].clamp_min(1)  # 0 where more keys tie than a row has units


def choose(scores: Tensor, factor: Tensor, topk: int) -> Chosen:
    """Softmax of `factor * scores` over the k largest of the last axis, ties included, in integers; -1: over all.

    Nearly all keys are out at once: the k-th largest score is at least the k-th largest of the maxima of 2k groups.
    """
    keys, table = scores.shape[-1], exp_table().numpy()
    last = len(table) - 1  # the last step has no weight
    scores_Rm, steps_R = scores.reshape(-1, keys), factor.reshape(-1).numpy() * np.float32(EXP_STEPS)
    highest_R = scores_Rm.amax(-1).numpy()
    dense = not 0 < topk < keys
    if dense:
        candidates_Rm = scores_Rm.numpy() > -math.inf
    else:
        size = max(1, keys // (2 * topk))
        groups = keys // size
        maxima = scores_Rm[:, : groups * size].unflatten(-1, (size, groups)).amax(1).numpy()
        bound_R = np.partition(maxima, groups - topk, axis=-1)[:, groups - topk]
        # what is two steps below the bound is further from the row's largest than it, rounding included
        candidates_Rm = scores_Rm.numpy() >= (bound_R - 2 / steps_R)[:, None]
    kept = np.flatnonzero(candidates_Rm)
    counts = np.diff(np.searchsorted(kept, np.arange(len(highest_R) + 1) * keys))
    row = np.repeat(np.arange(len(counts)), counts)
    # how far each is below the row's largest, in steps of the table: what its weight is looked up by, and ranked by
    below = np.repeat(highest_R, counts) - scores_Rm.view(-1).numpy()[kept]
    steps = np.minimum(np.rint(below * np.repeat(steps_R, counts)), last).astype(np.int32)
    allowed_R = np.full(len(counts), last - 1, dtype=np.int32)
    if not dense:
        ranked = np.full((len(counts), counts.max()), last, dtype=np.int32)
        ranked[np.arange(ranked.shape[1]) < counts[:, None]] = steps
        allowed_R = np.minimum(allowed_R, np.partition(ranked, topk - 1, axis=-1)[:, topk - 1])
    inside = steps <= np.repeat(allowed_R, counts)
    row, share = row[inside], table[steps[inside]]
    sums_R = np.bincount(row, share, minlength=len(counts))
    return Chosen(len(counts), row, kept[inside] - row * keys, np.floor(share * ROW_SUM / sums_R[row]))


@cache
def exp_table() -> Tensor:
    """2^14 exp(-i / 1024), rounded, for i up to where it is 0."""
    steps = math.ceil(math.log(2 * EXP_PEAK) * EXP_STEPS) + 1
    return (EXP_PEAK * torch.exp(-torch.arange(steps, dtype=torch.float64) / EXP_STEPS)).round()


def exp_digest() -> int:
    """CRC-32 of the table: part of what a file names as its model."""
    return zlib.crc32(exp_table().numpy().tobytes())
