"""LARS: SGD whose rate is scaled for each tensor by the ratio of its norm and its gradient's (card, "Optimisation")."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class LARS(torch.optim.Optimizer):
    """Local rate `eta |w| / (|g| + wd |w|)`, momentum, optionally Nesterov; all norms stay on the device.

    A group with `exclude=True` takes plain steps. The local rate of a tensor of zeros is zero: it never moves
    unless it is excluded, which is why biases and BN are (`parameter_groups`); the paper's ablations did not
    exclude them.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 1e-3,
        nesterov: bool = True,
        exclude: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta, "nesterov": nesterov,
            "exclude": exclude,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads: list[Tensor] = [p.grad for p in params]
            decayed = torch._foreach_add(grads, params, alpha=group["weight_decay"])
            if group["exclude"]:
                torch._foreach_mul_(decayed, group["lr"])
            else:
                weight_norms, grad_norms = torch._foreach_norm(params), torch._foreach_norm(grads)
                rates = []
                for weight, grad in zip(weight_norms, grad_norms, strict=True):
                    whole = grad + group["weight_decay"] * weight
                    rates.append(
                        torch.where(whole > 0, group["lr"] * group["eta"] * weight / whole, group["lr"])
                    )
                torch._foreach_mul_(decayed, rates)
            for parameter, update in zip(params, decayed, strict=True):
                state = self.state[parameter]
                if "momentum_buffer" in state:
                    state["momentum_buffer"].mul_(group["momentum"]).add_(update)
                else:
                    state["momentum_buffer"] = update.clone()
                if group["nesterov"]:
                    update.add_(state["momentum_buffer"], alpha=group["momentum"])
                else:
                    update = state["momentum_buffer"]
                parameter.sub_(update)


def parameter_groups(module: nn.Module, weight_decay: float, exclude: bool) -> list[dict[str, Any]]:
    """Weights of two axes or more, and the rest (BN and biases): without decay, and without LARS if `exclude`."""
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay, "exclude": False},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, "exclude": exclude},
    ]
