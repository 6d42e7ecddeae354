"""First-moment parameters beta_t over time (card, "Method"): constant, increasing, in stages, or Adam's bias correction.

A schedule is called with t = 0, 1, ... and returns beta_t; gamma_t = 1 - beta_t is what the theory speaks of. Anything else
that is callable with t serves as well. These are plain values: they compare, print and pickle.
"""

from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """beta_t = beta."""

    beta: float

    def __call__(self, t: int) -> float:
        """beta_t."""
        return self.beta


@dataclass(frozen=True)
class Increasing:
    """gamma_t = min(1, c (t+1)^-power): the anytime schedule, with a step size that falls alike."""

    c: float = 1.0
    power: float = 0.5

    def __call__(self, t: int) -> float:
        """beta_t."""
        return 1 - min(1.0, self.c * (t + 1) ** -self.power)


@dataclass(frozen=True)
class Stagewise:
    """beta_t = the beta of the last stage that has started; stages are (first t, beta), in order, the first one at 0."""

    stages: tuple[tuple[int, float], ...]

    def __call__(self, t: int) -> float:
        """beta_t."""
        return next(beta for start, beta in reversed(self.stages) if t >= start)


@dataclass(frozen=True)
class Debias:
    """beta_t = b (1 - b^t) / (1 - b^(t+1)), starting at 0: with it for both moments the family is torch's Adam.

    The average with these weights is Adam's bias-corrected one (derived in the card, and a test).
    """

    beta: float

    def __call__(self, t: int) -> float:
        """beta_t."""
        return self.beta * (1 - self.beta**t) / (1 - self.beta ** (t + 1))
