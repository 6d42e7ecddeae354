"""AdaBound and AMSBound (Luo et al., ICLR 2019): bounds that close in over time, a rival of the fixed-bound member.

With t = 1, 2, ... the step size is lr sqrt(1-b2^t)/(1-b1^t) / (sqrt(u)+eps), clipped to final (1 - 1/(gamma t + 1)) ..
final (1 + 1/(gamma t)), and multiplies the uncorrected first moment; `final` follows changes of lr. Weight decay is part of
the gradient (card, "Pitfalls"). One tensor after the other, as plainly as it can be said; the benchmark's reference.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class AdaBound(torch.optim.Optimizer):
    """The optimizer; parameter groups may be added later and have their own lr."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        final_lr: float = 0.1, gamma: float = 1e-3, eps: float = 1e-8, weight_decay: float = 0.0,
        amsbound: bool = False,
    ) -> None:  # fmt: skip
        defaults = {
            "lr": lr, "betas": betas, "final_lr": final_lr, "gamma": gamma, "eps": eps, "weight_decay": weight_decay,
            "amsbound": amsbound,
        }  # fmt: skip
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; the lr that it starts with is what `final_lr` refers to."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group.setdefault("base_lr", group["lr"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step of every parameter that has a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)
        return loss

    def _update(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state.update(step=0, first=torch.zeros_like(p), second=torch.zeros_like(p))
            if group["amsbound"]:
                state["largest"] = torch.zeros_like(p)
        state["step"] += 1
        t, (b1, b2) = state["step"], group["betas"]
        if group["weight_decay"]:
            g = g.add(p, alpha=group["weight_decay"])
        state["first"].mul_(b1).add_(g, alpha=1 - b1)
        state["second"].mul_(b2).addcmul_(g, g, value=1 - b2)
        u = state["second"]
        if group["amsbound"]:
            u = torch.maximum(state["largest"], u, out=state["largest"])
        size = group["lr"] * (1 - b2**t) ** 0.5 / (1 - b1**t)
        final = group["final_lr"] * group["lr"] / group["base_lr"]
        lower, upper = final * (1 - 1 / (group["gamma"] * t + 1)), final * (1 + 1 / (group["gamma"] * t))
        steps = torch.full_like(u, size).div_(u.sqrt().add_(group["eps"])).clamp_(lower, upper)
        p.sub_(steps.mul_(state["first"]))
