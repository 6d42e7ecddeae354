"""Min-max: min over x, max over y, with a moving average on x only (card, "Extensions"; single loop, batch O(1)).

    v_{t+1} = (1-gamma) v_t + gamma ∂_x f_noisy(x_t, y_t)
    x_{t+1} = x_t - eta_x v_{t+1} (PDSM)  or  x_t - eta_x s_t v_{t+1} (PDAda)
    y_{t+1} = Proj_Y[y_t + eta_y ∂_y f_noisy(x_t, y_t)]           at the old x

Shapes: x [..., d], y [..., m], leading dimensions are independent runs.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from stages.adam.method.recursion import Number, Recursion

Projection = Callable[[Tensor], Tensor]


class PDSM:
    """Primal-dual stochastic momentum.

    Args:
        primal: the recursion of x; heavy ball here, an adaptive member in `PDAda`.
        project: onto the dual's set; None for the whole space.
        dual_momentum: an ablation, beta of a moving average of the dual gradient; 0 is plain ascent, the method.
    """

    def __init__(
        self, primal: Recursion | None = None, project: Projection | None = None, dual_momentum: float = 0.0
    ) -> None:
        self.primal = primal or Recursion("sgdm")
        self.project, self.dual_momentum = project, dual_momentum
        self._dual_average: Tensor | None = None

    @property
    def v(self) -> Tensor:
        """The moving average of the primal gradient."""
        return self.primal.v

    def step(
        self, x: Tensor, y: Tensor, grad_x: Tensor, grad_y: Tensor, eta_x: Number, eta_y: Number, beta: Number
    ) -> tuple[Tensor, Tensor]:
        """(x_{t+1}, y_{t+1}) from stochastic gradients, both taken at (x_t, y_t)."""
        if self.dual_momentum:
            old = grad_y if self._dual_average is None else self._dual_average
            grad_y = self._dual_average = torch.lerp(grad_y, old, self.dual_momentum)
        y = y + eta_y * grad_y
        return self.primal.step(x, grad_x, eta_x, beta), y if self.project is None else self.project(y)


class PDAda(PDSM):
    """The adaptive version: x moves with the scale of a member of the family."""

    def __init__(
        self, beta2: float = 0.99, G0: float = 1.0, project: Projection | None = None, member: str = "adam"
    ) -> None:
        super().__init__(Recursion(member, beta2, G0), project)
