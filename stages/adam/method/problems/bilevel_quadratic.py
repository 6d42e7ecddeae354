"""Bilevel with everything exact (card, E9).

Lower level g(x, y) = ½ yᵀ H y - yᵀ B x, so y*(x) = H^{-1} B x; upper level f(x, y) = F(x) + ½ ‖y - c‖².
"""

import torch
from torch import Tensor

from stages.adam.method.problems.quadratic_welsch import QuadraticWelsch


class BilevelQuadratic:
    """The problem; x is [..., d], y [..., m].

    Args:
        base: F.
        H_mm: lower-level Hessian, symmetric positive definite.
        B_md: coupling.
        c_m: what the upper level wants y to be.
    """

    def __init__(self, base: QuadraticWelsch, H_mm: Tensor, B_md: Tensor, c_m: Tensor) -> None:
        self.base, self.H, self.B, self.c = base, H_mm, B_md, c_m
        self._solution_md = torch.linalg.solve(H_mm, B_md)
        self.x0 = base.x0

    def best_y(self, x: Tensor) -> Tensor:
        """y*(x), [..., m]."""
        return x @ self._solution_md.T

    def value(self, x: Tensor) -> Tensor:
        """F(x) + ½ ‖y*(x) - c‖², [...]."""
        return self.base.value(x) + 0.5 * (self.best_y(x) - self.c).square().sum(-1)

    def grad(self, x: Tensor) -> Tensor:
        """The exact hypergradient, [..., d]."""
        return self.base.grad(x) + (self.best_y(x) - self.c) @ self._solution_md

    def lower_grad(self, x: Tensor, y: Tensor) -> Tensor:
        """∂_y g, [..., m]."""
        return y @ self.H - x @ self.B.T

    def upper_grad_y(self, y: Tensor) -> Tensor:
        """∂_y f, [..., m]."""
        return y - self.c

    def hypergradient(self, x: Tensor, h: Tensor) -> Tensor:
        """∂_x f - ∂_xy g h, [..., d], where h [..., m] stands for [∂_yy g]^{-1} ∂_y f; ∂_xy g is -Bᵀ."""
        return self.base.grad(x) + h @ self.B
