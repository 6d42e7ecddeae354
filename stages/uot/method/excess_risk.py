"""The theory in miniature.

SGD on linear regression, alone and jointly with a source (card, "Theory to demonstrate").

y = <theta*, x> + noise, x ~ N(0, Sigma) in d = 20 dimensions with the eigenvalues of Sigma evenly between 0.2
and 1, noise of deviation 1, one fresh sample a step. The source has its own optimum, `delta` away from theta*
in a random direction. Shapes: P points and N trials at once, D dimensions.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

DIMENSION, SMALLEST, LARGEST, NOISE = 20, 0.2, 1.0, 1.0
LARGEST_STEP = 0.02


def step_size(samples: int) -> float:
    """eta = min(0.02, log n / (mu n)) with mu the smallest eigenvalue."""
    return min(LARGEST_STEP, math.log(samples) / (SMALLEST * samples))


@dataclass(frozen=True)
class Point:
    """`start` away from theta*, weight `alpha` of the target (1: no source), `delta` to the source."""

    start: float
    alpha: float = 1.0
    delta: float = 0.0


def excess_risk(samples: int, points: Sequence[Point], trials: int = 256, seed: int = 0) -> list[float]:
    """Mean over trials of the excess risk (theta_n - theta*)^T Sigma (theta_n - theta*) / 2, for every point.

    Args:
        samples: steps n, one target sample (and one source sample) each.
        points: experiments; all see the same samples, and have the same directions of start and source.
        trials: independent repetitions, vectorised.
        seed: of all draws.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def column(values: Iterable[float]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.float64)[:, None, None]

    eigenvalue_D = torch.linspace(SMALLEST, LARGEST, DIMENSION, dtype=torch.float64)
    deviation_D = eigenvalue_D.sqrt()
    error_PND = column(p.start for p in points) * normalize(normal(trials, DIMENSION), dim=1)
    shift_PND = column(p.delta for p in points) * normalize(normal(trials, DIMENSION), dim=1)
    alpha_P11 = column(p.alpha for p in points)
    terms = [(alpha_P11, torch.zeros(()))]
    if bool((alpha_P11 != 1).any()):
        terms.append((1 - alpha_P11, shift_PND))
    eta = step_size(samples)
    for _ in range(samples):
        step_PND = torch.zeros_like(error_PND)
        for weight_P11, optimum in terms:
            x_ND, noise_N1 = deviation_D * normal(trials, DIMENSION), NOISE * normal(trials, 1)
            residual_PN1 = ((error_PND - optimum) * x_ND).sum(2, keepdim=True) - noise_N1
            step_PND += weight_P11 * residual_PN1 * x_ND
        error_PND -= eta * step_PND
    return ((error_PND.square() @ eigenvalue_D).mean(1) / 2).tolist()
