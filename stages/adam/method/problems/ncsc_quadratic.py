"""Min-max with everything exact: non-convex in x, strongly concave in y (card, E7).

f(x, y) = F(x) + yᵀ A x - (mu/2) ‖y‖², y*(x) = A x/mu, Phi(x) = max_y f = F(x) + ‖A x‖²/(2 mu).
"""

from torch import Tensor

from stages.adam.method.problems.quadratic_welsch import QuadraticWelsch


class NCSCQuadratic:
    """The problem; x is [..., d], y [..., m].

    Args:
        base: F.
        A_md: coupling.
        mu: strong concavity in y.
    """

    def __init__(self, base: QuadraticWelsch, A_md: Tensor, mu: float) -> None:
        self.base, self.A, self.mu = base, A_md, mu
        self.x0 = base.x0

    def best_y(self, x: Tensor) -> Tensor:
        """y*(x), [..., m]."""
        return x @ self.A.T / self.mu

    def value(self, x: Tensor) -> Tensor:
        """Phi, [...]."""
        return self.base.value(x) + (x @ self.A.T).square().sum(-1) / (2 * self.mu)

    def grad(self, x: Tensor) -> Tensor:
        """∇Phi, [..., d]."""
        return self.grad_x(x, self.best_y(x))

    def grad_x(self, x: Tensor, y: Tensor) -> Tensor:
        """∂f/∂x, [..., d]."""
        return self.base.grad(x) + y @ self.A

    def grad_y(self, x: Tensor, y: Tensor) -> Tensor:
        """∂f/∂y, [..., m]."""
        return x @ self.A.T - self.mu * y
