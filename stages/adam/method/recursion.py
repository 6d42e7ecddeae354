"""The family's recursion, step by step, for a batch of independent runs (card, "Family").

    v_{t+1} = beta_t v_t + (1 - beta_t) g_t         first moment
    u_{t+1} = h_t(g_0 .. g_t)                       the member's rule
    s_t     = 1 / (sqrt(u_{t+1}) + G0)              element-wise scale
    x_{t+1} = x_t - eta_t s_t v_{t+1}

Shapes: every tensor is [..., d]; the dimensions before the last one are runs that do not see each other (settings, seeds).
Step sizes and betas are numbers or tensors that broadcast against it, such as [settings, 1, 1].
A member of your own is a rule and an entry of `MEMBERS`. As an optimizer for networks: `adam_family.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Number = float | Tensor
FirstMoment = Literal["grad", "zeros"]


@dataclass
class Moments:
    """What the rules see and keep: t, the new gradient and first moment, and the running statistics."""

    t: int
    g: Tensor
    v: Tensor
    beta2: Number
    bounds: tuple[float, float]
    average: Tensor  # of squared gradients, exponential or over all steps
    largest: Tensor  # amsgrad's maximum

    def square_average(self) -> Tensor:
        """The exponential average of squared gradients, with the new one in it."""
        self.average = self.beta2 * self.average + (1 - self.beta2) * self.g * self.g
        return self.average


def adam(m: Moments) -> Tensor:
    """u = b2 u + (1 - b2) g² (Kingma and Ba)."""
    return m.square_average()


def amsgrad(m: Moments) -> Tensor:
    """u = the largest average of squared gradients so far (Reddi et al.)."""
    m.largest = torch.maximum(m.largest, m.square_average())
    return m.largest


def adafom(m: Moments) -> Tensor:
    """u = the plain mean of all squared gradients (Chen et al. 2019)."""
    m.average = m.average + (m.g * m.g - m.average) / (m.t + 1)
    return m.average


def adam_plus(m: Moments) -> Tensor:
    """u = the first moment's norm, one number for all coordinates (Liu et al. 2020)."""
    return m.v.norm(dim=-1, keepdim=True)


def adabound(m: Moments) -> Tensor:
    """u = the average of squared gradients, clipped such that 1/sqrt(u) stays within the bounds (Luo et al.)."""
    lower, upper = m.bounds
    return m.square_average().clamp(upper**-2, lower**-2)


def adagrad(m: Moments) -> Tensor:
    """u = the sum of all squared gradients."""
    m.average = m.average + m.g * m.g
    return m.average


@dataclass(frozen=True)
class Member:
    """One row of the family table: its rule, None for heavy ball (s = 1); controls have no first moment."""

    rule: Callable[[Moments], Tensor] | None
    formula: str
    momentum: bool = True
    offset: bool = True  # whether G0 is part of it
    scale_bounds: Callable[[float, float], tuple[float, float]] = field(default=lambda G, G0: (0.0, 1 / G0))


def _square_bounds(G: float, G0: float) -> tuple[float, float]:
    return 1 / (G + G0), 1 / G0


MEMBERS: dict[str, Member] = {
    "sgdm": Member(None, "1", offset=False, scale_bounds=lambda G, G0: (1.0, 1.0)),
    "adam": Member(adam, "b2 u + (1−b2) g²", scale_bounds=_square_bounds),
    "amsgrad": Member(amsgrad, "max(u, EMA g²)", scale_bounds=_square_bounds),
    "adafom": Member(adafom, "mean of all g²", scale_bounds=_square_bounds),
    "adam_plus": Member(adam_plus, "‖v‖", scale_bounds=lambda G, G0: (1 / (G**0.5 + G0), 1 / G0)),
    "adabound": Member(adabound, "clip(EMA g²)", offset=False),
    "rmsprop": Member(adam, "b2 u + (1−b2) g², β = 0", momentum=False, scale_bounds=_square_bounds),
    "adagrad": Member(adagrad, "sum of all g², β = 0", momentum=False),
}


def theory_bounds(member: str, G: float, G0: float, bounds: tuple[float, float]) -> tuple[float, float]:
    """c_l and c_u of the table, for gradients whose entries (for adam_plus: whose norm) stay within G."""
    return bounds if member == "adabound" else MEMBERS[member].scale_bounds(G, G0)


class Recursion:
    """State of one batch of runs.

    Args:
        member: a name of `MEMBERS`.
        beta2: of the squared gradients' average.
        G0: the offset in the scale; members that have none ignore it.
        bounds: (c_l, c_u) of adabound.
        init_first_moment: "grad" (v_1 = g_0, unbiased from the start) or "zeros" (v_0 = 0).

    Attributes:
        v: first moment v_{t+1} after a step.
        s: scale s_t of the last step.
        t: steps taken.
    """

    def __init__(
        self,
        member: str,
        beta2: Number = 0.999,
        G0: float = 1e-8,
        bounds: tuple[float, float] = (0.0, float("inf")),
        init_first_moment: FirstMoment = "grad",
    ) -> None:
        self.member = MEMBERS[member]
        self.beta2, self.bounds, self.init = beta2, bounds, init_first_moment
        self.G0 = G0 if self.member.offset else 0.0
        self.t = 0
        self.v = torch.zeros(())
        self.s = torch.ones(())
        self._moments: Moments | None = None

    def step(self, x: Tensor, g: Tensor, eta: Number, beta: Number, beta2: Number | None = None) -> Tensor:
        """x_{t+1} from x_t, the stochastic gradient g_t [..., d] at it, eta_t and beta_t."""
        if not self.member.momentum or (self.t == 0 and self.init == "grad"):
            self.v = g
        else:
            self.v = beta * self.v + (1 - beta) * g
        if self.member.rule is not None:
            beta2 = self.beta2 if beta2 is None else beta2
            if self._moments is None:
                zero = torch.zeros_like(g)
                self._moments = Moments(0, g, self.v, beta2, self.bounds, zero, zero)
            m = self._moments
            m.t, m.g, m.v, m.beta2 = self.t, g, self.v, beta2
            self.s = 1 / (self.member.rule(m).sqrt() + self.G0)
        else:
            self.s = torch.ones((), dtype=x.dtype)
        self.t += 1
        return x - eta * self.s * self.v
