"""Zen-score (ICCV 2021), the ancestor of the entropy score, for comparison (card, section 3)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from stages.zendet.method.cost import Size, sides
from stages.zendet.method.structure import Structure, convolutions

NOISE = 0.01


class PlainConv(NamedTuple):
    """A convolution of the plain network that Zen-score looks at."""

    weight: Tensor
    stride: int
    groups: int = 1


def zen_score(
    convs: Sequence[PlainConv], clean_BCHW: Tensor, mixed_BCHW: Tensor, bn_momentum: float = 0.1
) -> tuple[float, list[float]]:
    """Zen-score of convolution -> batch norm (batch statistics) -> ReLU, and the mean running variance of each norm.

    `mixed` is the clean input plus 0.01 times noise. With torch's momentum of 0.1 the running variance after both
    passes is 0.81 + 0.09 var1 + 0.10 var2, as in the authors' code; 1.0 takes the second batch's variance itself.
    """
    running = [torch.ones(conv.weight.shape[0]) for conv in convs]
    outputs = []
    for x in (clean_BCHW, mixed_BCHW):
        for conv, variance in zip(convs, running, strict=True):
            padding = (conv.weight.shape[-1] - 1) // 2
            x = F.conv2d(x, conv.weight, stride=conv.stride, padding=padding, groups=conv.groups)
            batch = x.var(dim=(0, 2, 3), unbiased=True)
            variance.lerp_(batch, bn_momentum)
            x = F.relu(F.batch_norm(x, None, None, training=True))
        outputs.append(x)
    difference = (outputs[0] - outputs[1]).abs().flatten(1).sum(1).mean()
    means = [float(variance.mean()) for variance in running]
    return float(difference.log()) + 0.5 * sum(float(torch.tensor(m).log()) for m in means), means


@torch.no_grad()
def zen_score_of(
    structure: Structure, size: Size, generator: Generator, batch: int = 4, bn_momentum: float = 0.1
) -> float:
    """Zen-score of a structure, its shortcuts left out, with weights and inputs drawn from `generator`."""
    convs = [
        PlainConv(
            torch.randn((c.cout, c.cin // c.groups, c.kernel, c.kernel), generator=generator),
            c.stride,
            c.groups,
        )
        for c in convolutions(structure)
        if c.role != "projection"
    ]
    clean, noise = (torch.randn((batch, 3, *sides(size)), generator=generator) for _ in range(2))
    return zen_score(convs, clean, clean + NOISE * noise, bn_momentum)[0]
