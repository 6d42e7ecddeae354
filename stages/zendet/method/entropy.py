"""The entropy score: how much Gaussian noise a backbone's features can carry, without training (card, section 3).

Weights and input are standard normal; shortcuts, batch norm and ReLU are left out. After every convolution the features
are divided by their standard deviation sigma; with blocks numbered through the backbone, n_i blocks up to the end of
stage i and c_i its channels,

    H_i = sum_{b <= n_i} log sigma_b + log c_i        Z = sum_i alpha_i H_i.

Three ways to the sigmas: "monte_carlo" draws weights and input (the authors' 2022 release); "closed_form" takes
sigma^2 = fan-in (their 2023 release, blind to zero padding); "analytic" propagates the expected variance map, which is
a product of a row profile and a column profile, so that padding is exact.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from stages.zendet.method.cost import Size, sides, stage_table
from stages.zendet.method.structure import BlockSpec, Structure, convolutions, stage_ends

Method = Literal["analytic", "closed_form", "monte_carlo"]
Profile = tuple[float, ...]  # expected variance along one axis, mean 1
DETECTION_ALPHAS = (0.0, 0.0, 1.0, 1.0, 6.0)


@dataclass(frozen=True)
class EntropyScore:
    """Z, its terms alpha_i H_i, log sigma of every block, and for Monte-Carlo the sd of Z over the repeats."""

    total: float
    stages: tuple[float, ...]
    block_log_sigma: tuple[float, ...]
    sd: float = 0.0


def entropy_score(
    structure: Structure,
    size: Size,
    alphas: Sequence[float] = DETECTION_ALPHAS,
    method: Method = "analytic",
    batch: int = 32,
    repeats: int = 4,
    generator: Generator | None = None,
) -> EntropyScore:
    """Score one structure; `batch`, `repeats` and `generator` are Monte-Carlo's.

    Raises:
        ValueError: as many alphas as stages are needed; Monte-Carlo needs a generator.
    """
    _check_alphas(structure, alphas)
    if method == "monte_carlo":
        if generator is None:
            raise ValueError("method 'monte_carlo' needs a generator")
        draws = []
        for _ in range(repeats):
            x = torch.randn((batch, 3, *sides(size)), generator=generator)
            std, _ = entropy_forward(structure, x, lambda _, shape: torch.randn(shape, generator=generator))
            draws.append(std.log())
        scores = torch.tensor([sum(_stage_terms(structure, d.tolist(), alphas)) for d in draws])
        log_sigma = torch.stack(draws).mean(0).tolist()
        sd = float(scores.std(unbiased=False))
    else:
        log_sigma, sd = _expected_log_sigma(structure, size, method), 0.0
    stages = _stage_terms(structure, log_sigma, alphas)
    return EntropyScore(sum(stages), stages, tuple(log_sigma), sd)


def _check_alphas(structure: Structure, alphas: Sequence[float]) -> None:
    stages = len(stage_ends(structure))
    if len(alphas) != stages:
        raise ValueError(f"alphas {tuple(alphas)}: must be one for each of the {stages} stages")


def _stage_terms(
    structure: Structure, log_sigma: Sequence[float], alphas: Sequence[float]
) -> tuple[float, ...]:
    total = list(accumulate(log_sigma, initial=0.0))
    return tuple(
        alpha * (total[row.blocks] + math.log(row.channels)) if alpha else 0.0
        for alpha, row in zip(alphas, stage_table(structure), strict=True)
    )


def _expected_log_sigma(structure: Structure, size: Size, method: Method) -> list[float]:
    """Log sigma of every block by the closed form or by the analytic propagation."""
    per_block: dict[int, float] = {}
    profiles = [(1.0,) * side for side in sides(size)]
    for conv in convolutions(structure):
        if conv.role == "projection":
            continue
        value = 0.5 * math.log(conv.cin / conv.groups)
        if method == "closed_form":
            value += math.log(conv.kernel)
        else:
            steps = [propagate(profile, conv.kernel, conv.stride) for profile in profiles]
            profiles = [profile for _, profile in steps]
            value += 0.5 * sum(gain for gain, _ in steps)
        per_block[conv.block] = per_block.get(conv.block, 0.0) + value
    return list(per_block.values())


@lru_cache(maxsize=1 << 16)
def propagate(profile: Profile, kernel: int, stride: int, depth: int = 1) -> tuple[float, Profile]:
    """One axis of the variance map through `depth` convolutions, the first of stride `stride`, zero padded.

    Returns the sum of the log means of the box sums and the last profile, divided by its mean. Channels do not enter,
    so that one cache serves every width.
    """
    if depth > 1:
        first, profile = propagate(profile, kernel, stride)
        rest, profile = propagate(profile, kernel, 1, depth - 1)
        return first + rest, profile
    pad = (kernel - 1) // 2
    total = list(accumulate([0.0] * pad + list(profile) + [0.0] * pad, initial=0.0))
    sums = [total[i + kernel] - total[i] for i in range(0, len(total) - kernel, stride)]
    mean = math.fsum(sums) / len(sums)
    return math.log(mean), tuple(value / mean for value in sums)


@lru_cache(maxsize=1 << 18)
def _channel_terms(block: BlockSpec) -> float:
    """Sum of 1/2 log(fan-in without the kernel) over the convolutions of an element."""
    if block.kind == "conv":
        return 0.5 * math.log(block.cin)
    mids = 1 if block.kind == "k1dwk1" else 2  # a depthwise convolution has one input channel
    return 0.5 * (
        math.log(block.cin)
        + (block.depth - 1) * math.log(block.cout)
        + mids * block.depth * math.log(block.mid)
    )


class EntropyScorer:
    """Z as a function of the structure alone, fast enough for a search: everything that repeats is cached.

    Equal to `entropy_score(...).total` up to rounding.
    """

    def __init__(
        self,
        size: Size,
        alphas: Sequence[float] = DETECTION_ALPHAS,
        method: Literal["analytic", "closed_form"] = "analytic",
    ) -> None:
        self.sides, self.alphas, self.method = sides(size), tuple(alphas), method

    def __call__(self, structure: Structure) -> float:
        """Z of a structure."""
        height, width = self.sides
        rows, columns = (1.0,) * height, (1.0,) * width
        alphas, last = iter(self.alphas), len(structure) - 1
        score = total = 0.0
        for index, block in enumerate(structure):
            total += _channel_terms(block)
            if self.method == "closed_form":
                total += block.depth * math.log(block.kernel)
            else:
                gain, rows = propagate(rows, block.kernel, block.stride, block.depth)
                if height == width:
                    columns = rows
                    total += gain
                else:
                    other, columns = propagate(columns, block.kernel, block.stride, block.depth)
                    total += 0.5 * (gain + other)
            if index == last or structure[index + 1].stride == 2:
                alpha = next(alphas)
                if alpha:
                    score += alpha * (total + math.log(block.cout))
        return score


def entropy_forward(
    structure: Structure, x_BCHW: Tensor, weight: Callable[[str, tuple[int, ...]], Tensor]
) -> tuple[Tensor, Tensor]:
    """The Monte-Carlo forward: standard deviation of every block `[blocks]` and the last features, divided by theirs.

    `weight(name, shape)` gives the weight of each convolution; a bottleneck's value is the product of its three.
    """
    blocks: dict[int, Tensor] = {}
    for conv in convolutions(structure):
        if conv.role == "projection":
            continue
        shape = (conv.cout, conv.cin // conv.groups, conv.kernel, conv.kernel)
        x_BCHW = F.conv2d(
            x_BCHW,
            weight(conv.name, shape),
            stride=conv.stride,
            padding=(conv.kernel - 1) // 2,
            groups=conv.groups,
        )
        std = x_BCHW.std()
        x_BCHW = x_BCHW / std
        blocks[conv.block] = blocks.get(conv.block, torch.ones(())) * std
    return torch.stack(list(blocks.values())), x_BCHW
