"""Linear problems on [-1, 1] on which Adam with a small beta walks the wrong way (Reddi et al.; card, E5).

The mean gradient is positive, so the best point is -1; it is made of rare large gradients and common small negative
ones, and a reactive second moment shrinks just the rare ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from stages.adam.method.noise import Draw


@dataclass(frozen=True)
class ReddiStochastic:
    """g = C with probability p, else `other`; by default the card's lite version."""

    C: float = 20.0
    p: float = 1.2 / 21.0
    other: float = -1.0

    @property
    def mean(self) -> float:
        """The gradient of the expectation."""
        return self.p * self.C + (1 - self.p) * self.other

    def value(self, x: Tensor) -> Tensor:
        """F, [...]."""
        return self.mean * x

    def grad(self, x: Tensor) -> Tensor:
        """∇F, the same everywhere."""
        return torch.full_like(x, self.mean)

    def draw(self, walks: int) -> Draw:
        """Stochastic gradients [walks, 1] of independent walks."""

        def draw(generator: Generator, n: int) -> Tensor:
            rare = torch.rand((n, walks, 1), generator=generator, dtype=torch.float64) < self.p
            return torch.where(rare, self.C, self.other)

        return draw


@dataclass(frozen=True)
class ReddiOnline:
    """A cycle of given gradients, over and over; no chance involved."""

    cycle: Sequence[float]

    def at(self, t: int) -> float:
        """The gradient of step t."""
        return self.cycle[t % len(self.cycle)]


def three_cycle(C: float = 3.0) -> ReddiOnline:
    """C once, -1 twice: mean (C - 2)/3 > 0."""
    return ReddiOnline((C, -1.0, -1.0))


def long_cycle() -> ReddiOnline:
    """1010 once, -10 a hundred times: mean 10/101 > 0."""
    return ReddiOnline((1010.0, *[-10.0] * 100))
