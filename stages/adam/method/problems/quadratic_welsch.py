"""Quadratic plus a bounded dip: smooth, non-convex, with a known minimum (card, E1).

F(x) = Σ_i ½ lam_i z_i² + alpha z_i²/(1+z_i²) with z = Q x. L = max lam + 2 alpha; F* = 0 at 0. Where lam_i < alpha/2, the
curvature is negative around z_i = 1.
"""

import torch
from torch import Tensor

from stages.adam.method.problems.matrices import random_orthogonal


class QuadraticWelsch:
    """The problem; points are [..., d].

    Args:
        Q_dd: rotation.
        lam_d: curvatures of the quadratic part, positive.
        alpha: height of the dip.
        start: every coordinate of z at x0.
    """

    F_star = 0.0

    def __init__(self, Q_dd: Tensor, lam_d: Tensor, alpha: float, start: float = 3.0) -> None:
        self.Q, self.lam, self.alpha = Q_dd, lam_d, alpha
        self.L = float(lam_d.max()) + 2 * alpha
        self.x0 = torch.full_like(lam_d, start) @ Q_dd

    def value(self, x: Tensor) -> Tensor:
        """F, [...]."""
        z2 = (x @ self.Q.T).square()
        return (0.5 * self.lam * z2 + self.alpha * z2 / (1 + z2)).sum(-1)

    def grad(self, x: Tensor) -> Tensor:
        """∇F, [..., d]."""
        z = x @ self.Q.T
        return (z * (self.lam + 2 * self.alpha / (1 + z * z).square())) @ self.Q

    def oracle(self, x: Tensor, noise: Tensor) -> Tensor:
        """Stochastic gradient: the exact one plus noise of mean zero."""
        return self.grad(x) + noise


def standard(d: int, low: float = 1e-2, high: float = 1.0, start: float = 3.0) -> QuadraticWelsch:
    """The instance of the experiments: alpha = .2, curvatures log-spaced from `low` to `high`."""
    lam_d = torch.linspace(0, 1, d, dtype=torch.float64)
    return QuadraticWelsch(random_orthogonal(d), low * (high / low) ** lam_d, 0.2, start)
