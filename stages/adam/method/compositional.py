"""Compositional: min over x of f(E g(x; xi)), with two moving averages (card, "Extensions").

    z_{t+1} = (1-gamma_z) z_t + gamma_z g_noisy(x_t)                   tracks the inner value
    v_{t+1} = (1-gamma) v_t + gamma J_noisy(x_t)ᵀ ∇f(z_{t+1})
    x_{t+1} = x_t - eta s_t v_{t+1}

Without the inner average ∇f is taken at a noisy point, and as it is not linear, its mean is wrong: the `naive` control.
"""

from collections.abc import Callable

from torch import Tensor

from stages.adam.method.recursion import Number, Recursion


class CompositionalMA:
    """The stepper; x is [..., d], z [..., m], leading dimensions are independent runs.

    Args:
        outer: the recursion of x.
        naive: take z_{t+1} = g_noisy(x_t), the control.
    """

    def __init__(self, outer: Recursion, naive: bool = False) -> None:
        self.outer, self.naive = outer, naive
        self.z: Tensor | None = None

    def step(
        self, x: Tensor, inner: Tensor, gradient: Callable[[Tensor], Tensor], eta: Number, beta: Number,
        beta_z: Number,
    ) -> Tensor:  # fmt: skip
        """x_{t+1} from the noisy inner value [..., m] and z -> J_noisy(x_t)ᵀ ∇f(z) [..., d]."""
        if self.z is None or self.naive:
            self.z = inner
        else:
            self.z = beta_z * self.z + (1 - beta_z) * inner
        return self.outer.step(x, gradient(self.z), eta, beta)
