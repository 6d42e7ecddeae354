"""The theorem as inequalities that a run can violate (card, "Theorem in the form the reproduction must test").

With constant gamma and eta, an L-smooth F and noise of variance at most sigma²: if eta is within `step_limit`, then

    mean_t E‖∇F(x_t)‖² <= 4 ΔF/(eta c_l T) + (2 c_u/c_l) (E D_0/(gamma T) + 2 gamma sigma²)          (B1)
    mean_t E D_t       <= 2 E D_0/(gamma T) + 4 gamma sigma² + 2 ΔF/(eta c_u T)                      (B2)

where D_t = ‖v_{t+1} - ∇F(x_t)‖² is the first moment's error and every scale lies in [c_l, c_u].
"""

import math
from typing import NamedTuple


class Bound(NamedTuple):
    """Whether the step-size condition holds, and the right-hand sides of (B1) and (B2)."""

    ok: bool
    B1: float
    B2: float


def step_limit(L: float, gamma: float, c_l: float, c_u: float) -> float:
    """The largest step size for which the theorem speaks."""
    return min(gamma / (2 * L) * math.sqrt(c_l / c_u**3), c_l / (2 * c_u**2 * L))


def theorem_bound(
    L: float, sigma2: float, delta_F: float, eta: float, gamma: float, c_l: float, c_u: float, T: int,
    D_0: float | None = None,
) -> Bound:  # fmt: skip
    """Evaluate the bounds.

    Args:
        L: smoothness of F.
        sigma2: variance of the stochastic gradient.
        delta_F: F(x_0) minus the infimum of F.
        eta, gamma: step size and 1 - beta, both constant.
        c_l, c_u: smallest and largest scale.
        T: steps.
        D_0: expected first error; sigma2 when v_1 = g_0, which is the default.
    """
    D_0 = sigma2 if D_0 is None else D_0
    start = D_0 / (gamma * T)
    return Bound(
        ok=eta <= step_limit(L, gamma, c_l, c_u),
        B1=4 * delta_F / (eta * c_l * T) + 2 * c_u / c_l * (start + 2 * gamma * sigma2),
        B2=2 * start + 4 * gamma * sigma2 + 2 * delta_F / (eta * c_u * T),
    )


def steps_to(
    epsilon: float, L: float, sigma2: float, delta_F: float, c_l: float, c_u: float
) -> tuple[float, float, int]:
    """gamma, eta and T for which (B1) is at most epsilon² (the card's choice; T grows like epsilon^-4)."""
    gamma = min(1.0, epsilon**2 * c_l / (12 * c_u * sigma2))
    eta = step_limit(L, gamma, c_l, c_u)
    steps = max(12 * delta_F / (eta * c_l * epsilon**2), 6 * c_u * sigma2 / (c_l * gamma * epsilon**2))
    return gamma, eta, math.ceil(steps)
