"""Bilevel: min over x of f(x, y*(x)), y*(x) = argmin_y g(x, y), in one loop without inverse or SVD (card, "Extensions").

y_{t+1} = y_t - eta_y ∂_y g_noisy(x_t, y_t)
h       ≈ [∂_yy g]^{-1} ∂_y f_noisy(x_t, y_t)            a truncated Neumann series
v_{t+1} = (1-gamma) v_t + gamma (∂_x f_noisy - ∂_xy g_noisy h)
x_{t+1} = x_t - eta_x s_t v_{t+1}
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from stages.adam.method.recursion import Number, Recursion

Neumann = Literal["sum", "random"]
HessianProduct = Callable[[int, Tensor], Tensor]


def neumann_inverse_vector(
    hvp: HessianProduct, b: Tensor, K: int, C: float, mode: Neumann = "sum", p: Tensor | None = None
) -> Tensor:
    """An estimate of H^{-1} b from Hessian-vector products, for eigenvalues of H in (0, C].

    "sum" is (1/C) Σ_{k<K} Π_{j<=k} (I - H_j/C) b: bias at most (1/mu) (1-mu/C)^K ‖b‖. "random" is
    (K/C) Π_{j<=p} (I - H_j/C) b with p uniform in 0 .. K-1: the same mean, a variance that grows like K².

    Args:
        hvp: (j, vector) -> H_j times vector, where j = 1, 2, ... numbers independent samples of the Hessian.
        b: [..., m].
        K: terms; 0 gives zero.
        C: at least the largest eigenvalue.
        mode: which estimator.
        p: "random" only: the truncations, integers that broadcast against [...].
    """
    if K == 0:
        return torch.zeros_like(b)
    if mode == "sum":
        term = total = b
        for k in range(1, K):
            term = term - hvp(k, term) / C
            total = total + term
        return total / C
    if p is None:
        raise ValueError('mode "random" needs the truncations p')
    term = b
    for k in range(1, int(p.max()) + 1):
        term = torch.where((k <= p)[..., None], term - hvp(k, term) / C, term)
    return term * (K / C)


class SMB:
    """Stochastic momentum bilevel; x is [..., d], y [..., m], leading dimensions are independent runs."""

    def __init__(self, upper: Recursion | None = None) -> None:
        self.upper = upper or Recursion("sgdm")

    @property
    def v(self) -> Tensor:
        """The moving average of the hypergradient."""
        return self.upper.v

    def step(
        self, x: Tensor, y: Tensor, hypergradient: Tensor, lower_gradient: Tensor, eta_x: Number, eta_y: Number,
        beta: Number,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(x_{t+1}, y_{t+1}) from the estimated hypergradient and ∂_y g_noisy, both taken at (x_t, y_t)."""
        return self.upper.step(x, hypergradient, eta_x, beta), y - eta_y * lower_gradient
