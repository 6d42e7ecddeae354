"""Noise that belongs to a seed: what a run sees depends on its seed and the step, not on the seeds that run beside it."""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

Draw = Callable[[Generator, int], Tensor]  # (generator, n) -> [n, ...]
BLOCK = 256  # steps drawn at a time
STREAMS, BLOCKS = 64, 1 << 24  # so many kinds of noise and blocks have seeds of their own


class Noise:
    """Independent draws for every seed and step.

    Args:
        seeds: the S seeds.
        stream: names this noise among those of one run, 0 .. 63.
        draw: makes n draws from a generator.
    """

    def __init__(self, seeds: Sequence[int], stream: int, draw: Draw) -> None:
        self.seeds, self.stream, self.draw = seeds, stream, draw
        self._block = -1
        self._values_NS = torch.empty(0)

    def at(self, t: int) -> Tensor:
        """The draws of step t, [S, ...]."""
        block, row = divmod(t, BLOCK)
        if block != self._block:
            generators = (
                Generator().manual_seed((seed * STREAMS + self.stream) * BLOCKS + block)
                for seed in self.seeds
            )
            self._values_NS = torch.stack([self.draw(generator, BLOCK) for generator in generators], dim=1)
            self._block = block
        return self._values_NS[row]


def coin(sigma: float, *shape: int) -> Draw:
    """±1 coins, scaled such that the squared norm over the last dimension is exactly sigma²: bounded noise."""
    size = sigma / shape[-1] ** 0.5

    def draw(generator: Generator, n: int) -> Tensor:
        return (torch.randint(0, 2, (n, *shape), generator=generator) * 2 - 1).double() * size

    return draw


def gauss(sigma: float, *shape: int) -> Draw:
    """Normal noise with the same variance as `coin`; it breaks the bound on gradients."""
    size = sigma / shape[-1] ** 0.5

    def draw(generator: Generator, n: int) -> Tensor:
        return torch.randn((n, *shape), generator=generator, dtype=torch.float64) * size

    return draw


def skewed(sigma: float, C: float, *shape: int) -> Draw:
    """Mean zero, rare and large to one side (card, E4): per coordinate C k with probability 1/(C+1), else -k."""
    k = sigma / (shape[-1] * C) ** 0.5

    def draw(generator: Generator, n: int) -> Tensor:
        rare = torch.rand((n, *shape), generator=generator, dtype=torch.float64) < 1 / (C + 1)
        return torch.where(rare, C * k, -k)

    return draw


def choices(count: int, batch: int) -> Draw:
    """`batch` indices out of `count`, with replacement."""
    return lambda generator, n: torch.randint(0, count, (n, batch), generator=generator)
