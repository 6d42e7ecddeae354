"""Compositional with everything exact (card, E8): f(z) = Σ z²/(1+z²), E g(x) = A x - b, plus ½ lam ‖x‖²."""

from torch import Tensor


class CompositionalWelsch:
    """The problem; x is [..., d], z [..., m].

    Args:
        A_md: inner map.
        b_m: inner offset.
        lam: weight of ½‖x‖².
    """

    def __init__(self, A_md: Tensor, b_m: Tensor, lam: float = 0.05) -> None:
        self.A, self.b, self.lam = A_md, b_m, lam

    def inner(self, x: Tensor) -> Tensor:
        """E g(x), [..., m]."""
        return x @ self.A.T - self.b

    def value(self, x: Tensor) -> Tensor:
        """F, [...]."""
        z2 = self.inner(x).square()
        return (z2 / (1 + z2)).sum(-1) + 0.5 * self.lam * x.square().sum(-1)

    def grad_at(self, x: Tensor, z: Tensor) -> Tensor:
        """Jᵀ ∇f(z) + lam x, [..., d]: the gradient, were z the inner value."""
        return (2 * z / (1 + z * z).square()) @ self.A + self.lam * x

    def grad(self, x: Tensor) -> Tensor:
        """∇F, [..., d]."""
        return self.grad_at(x, self.inner(x))
