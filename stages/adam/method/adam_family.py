"""`AdamFamily`: every member of the family as one torch optimizer, a drop-in for torch's own (card, "Components").

The recursion is that of `recursion.py`; here it runs over lists of tensors with multi-tensor operations. For example

    optimizer = AdamFamily(model.parameters(), lr=1e-3, beta1=Increasing(c=1.0), member="amsgrad", G0=1e-3)
    ...
    optimizer.step()
    optimizer.scale_range()             # have the theory's c_l and c_u held so far?
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from stages.adam.method.recursion import MEMBERS, FirstMoment

Value = float | Callable[[int], float]
CORRECTABLE = (
    "sgdm",
    "adam",
    "amsgrad",
    "rmsprop",
)  # bias correction means something for plain averages from zero
CHUNK_ELEMENTS = 1 << 16
SCHEDULED = ("lr", "beta1", "beta2")


class AdamFamily(torch.optim.Optimizer):
    """x <- x - lr s v with s = 1/(sqrt(u) + G0) and v the moving average of gradients.

    Args:
        params: parameters or parameter groups; a group may set any of the options below for itself.
        lr: step size eta_t, a number or a function of t = 0, 1, ... (a parameter's own count of steps).
        beta1: of the first moment, a number or a schedule (`schedules.py`); the theory asks for a large or increasing one.
        member: which rule makes u, a name of `recursion.MEMBERS`; rmsprop and adagrad have no first moment and ignore beta1.
        beta2: of the average of squared gradients, a number or a function of t.
        G0: offset of the scale; sgdm and adabound have none.
        bounds: (c_l, c_u), adabound only.
        init_first_moment: "grad" (v_1 = g_0) or "zeros" (v_0 = 0).
        bias_correction: divide moments that started at zero by the weight they have gathered, as torch's Adam does.
        decoupled_weight_decay: shrink parameters by lr times this, beside the step, as AdamW does.
        track_scale: keep the running range of s (one more pass over the scale per step).

    Values of schedules are written into the groups ("lr", "beta1", "beta2") at each step; the schedules themselves are not
    part of `state_dict`. Load it into an optimizer that was built with the same ones.

    Raises:
        ValueError: an option is unknown or out of range, or a parameter is complex.
        RuntimeError: a gradient is sparse.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: Value = 1e-3,
        beta1: Value = 0.9,
        member: str = "adam",
        beta2: Value = 0.999,
        G0: float = 1e-8,
        bounds: tuple[float, float] | None = None,
        init_first_moment: FirstMoment = "grad",
        bias_correction: bool = False,
        decoupled_weight_decay: float = 0.0,
        track_scale: bool = True,
    ) -> None:
        self._schedules: list[dict[str, Callable[[int], float]]] = []
        defaults = {
            "lr": lr, "beta1": beta1, "member": member, "beta2": beta2, "G0": G0, "bounds": bounds,
            "init_first_moment": init_first_moment, "bias_correction": bias_correction,
            "decoupled_weight_decay": decoupled_weight_decay, "track_scale": track_scale,
        }  # fmt: skip
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; options that it lacks are the optimizer's."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        self._schedules.append({name: group[name] for name in SCHEDULED if callable(group[name])})
        for name, schedule in self._schedules[-1].items():
            group[name] = schedule(0)
        try:
            _check(group)
        except ValueError:
            self.param_groups.pop()
            self._schedules.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, schedules in zip(self.param_groups, self._schedules, strict=True):
            by_count: dict[int, list[Tensor]] = {}  # a parameter without a gradient stays behind
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.is_sparse:
                    raise RuntimeError("AdamFamily: a gradient is sparse; only dense gradients are supported")
                by_count.setdefault(self.state[p].get("step", 0), []).append(p)
            for t, params in sorted(by_count.items()):
                for name, schedule in schedules.items():
                    group[name] = schedule(t)
                for chunk in _chunks(params, group["member"]):
                    self._step_together(group, chunk, t)
        return loss

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_schedules": self._schedules}

    def first_moment(self, p: Tensor) -> Tensor | None:
        """v_{t+1} of a parameter that has taken a step: the estimate of its gradient before that step.

        Of a member without first moment it is that gradient itself, for as long as the parameter holds it.
        """
        return self.state[p].get("v", p.grad)

    def scale_range(self) -> tuple[float, float]:
        """Smallest and largest s over all parameters and steps so far: the measured c_l and c_u.

        Raises:
            RuntimeError: no step has been taken, or no group tracks its scale.
        """
        tracked = [state for state in self.state.values() if "widest" in state]
        if not tracked:
            raise RuntimeError(
                "AdamFamily.scale_range: nothing tracked yet; take a step (with track_scale=True)"
            )
        low = min(float(1 / state["widest"]) for state in tracked)
        return low, max(float(1 / state["smallest"]) for state in tracked)

    def _step_together(self, group: dict[str, Any], params: list[Tensor], t: int) -> None:
        """One step of parameters that have taken t steps each."""
        grads = [p.grad for p in params if p.grad is not None]
        states = [self.state[p] for p in params]
        if t == 0:
            for p, state in zip(params, states, strict=True):
                _start(p, state, group)
        lr, beta1, beta2 = group["lr"], group["beta1"], group["beta2"]
        if group["decoupled_weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["decoupled_weight_decay"])
        v_weight = u_weight = 1.0  # what the moments would be divided by; 1 where there is nothing to correct
        if group["bias_correction"]:
            for state in states:
                state["beta2_product"] *= beta2
            u_weight = 1 - states[0]["beta2_product"]
        if MEMBERS[group["member"]].momentum:
            v = [state["v"] for state in states]
            if t == 0 and group["init_first_moment"] == "grad":
                torch._foreach_copy_(v, grads)
            else:
                torch._foreach_lerp_(v, grads, 1 - beta1)
            if group["bias_correction"] and group["init_first_moment"] == "zeros":
                for state in states:
                    state["beta1_product"] *= beta1
                v_weight = 1 - states[0]["beta1_product"]
        else:
            v = grads
        size = -lr / v_weight
        if group["member"] == "sgdm":
            torch._foreach_add_(params, v, alpha=size)
            if t == 0 and group["track_scale"]:
                for p, state in zip(params, states, strict=True):
                    _widen(state, p.new_ones(()), p.new_ones(()))
        elif group["member"] == "adam_plus":
            norm = torch.stack([part.to(v[0].device) for part in torch._foreach_norm(v)]).norm()
            denominator = norm.sqrt() + group["G0"]
            for p, state, part in zip(params, states, v, strict=True):
                here = denominator.to(p)
                p.addcdiv_(part, here, value=size)
                if group["track_scale"]:
                    _widen(state, here, here)
        else:
            denominators = torch._foreach_sqrt(_second_moments(group, states, grads, t, beta2))
            if u_weight != 1:
                torch._foreach_div_(denominators, math.sqrt(u_weight))
            if group["member"] == "adabound":  # clipping u, after the root: no copy of u is needed
                lower, upper = group["bounds"]
                torch._foreach_clamp_min_(denominators, 1 / upper)
                torch._foreach_clamp_max_(denominators, 1 / lower)
            else:
                torch._foreach_add_(denominators, group["G0"])
            torch._foreach_addcdiv_(params, v, denominators, size)
            if group["track_scale"]:
                for state, denominator in zip(states, denominators, strict=True):
                    _widen(state, denominator.amin(), denominator.amax())
        for state in states:
            state["step"] = t + 1


def _chunks(params: list[Tensor], member: str) -> Iterator[list[Tensor]]:
    """Parts of a group that are stepped one after the other.

    On a CPU a step is bound by memory: a chunk that fits the cache goes through all operations before the next one comes,
    which is twice as fast as every operation over everything. adam_plus needs the norm of all first moments at once.
    """
    if member == "adam_plus" or params[0].device.type != "cpu":
        yield params
        return
    chunk: list[Tensor] = []
    elements = 0
    for p in params:
        if chunk and elements + p.numel() > CHUNK_ELEMENTS:
            yield chunk
            chunk, elements = [], 0
        chunk.append(p)
        elements += p.numel()
    yield chunk


def _second_moments(
    group: dict[str, Any], states: list[dict[str, Any]], grads: list[Tensor], t: int, beta2: float
) -> list[Tensor]:
    """Update u and return what the square root is taken of; the caller must not change it."""
    u = [state["u"] for state in states]
    match group["member"]:
        case "adafom":
            torch._foreach_mul_(u, t / (t + 1))
            torch._foreach_addcmul_(u, grads, grads, 1 / (t + 1))
        case "adagrad":
            torch._foreach_addcmul_(u, grads, grads, 1.0)
        case _:
            torch._foreach_mul_(u, beta2)
            torch._foreach_addcmul_(u, grads, grads, 1 - beta2)
    if group["member"] != "amsgrad":
        return u
    largest = [state["largest"] for state in states]
    torch._foreach_maximum_(largest, u)
    return largest


def _start(p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """State of a parameter before its first step: only what its member needs."""
    member = group["member"]
    if MEMBERS[member].momentum:
        state["v"] = torch.zeros_like(p, memory_format=torch.preserve_format)
    if member not in ("sgdm", "adam_plus"):
        state["u"] = torch.zeros_like(p, memory_format=torch.preserve_format)
    if member == "amsgrad":
        state["largest"] = torch.zeros_like(p, memory_format=torch.preserve_format)
    if group["bias_correction"]:
        state["beta1_product"] = state["beta2_product"] = 1.0
    if group["track_scale"]:
        state["smallest"], state["widest"] = p.new_full((), math.inf), p.new_zeros(())


def _widen(state: dict[str, Any], low: Tensor, high: Tensor) -> None:
    """Widen the running range of the denominator 1/s to hold low and high, on its device, without waiting for it."""
    torch.minimum(state["smallest"], low, out=state["smallest"])
    torch.maximum(state["widest"], high, out=state["widest"])


def _check(group: dict[str, Any]) -> None:
    if any(p.is_complex() for p in group["params"]):
        raise ValueError(
            "AdamFamily: a parameter is complex; give its real and imaginary parts (torch.view_as_real)"
        )
    member = group["member"]
    if member not in MEMBERS:
        raise ValueError(f"AdamFamily: unknown member {member!r}; choose from {', '.join(MEMBERS)}")
    for name, inside in {
        "lr": group["lr"] >= 0,
        "beta1": 0 <= group["beta1"] < 1,
        "beta2": 0 <= group["beta2"] < 1,
        "G0": group["G0"] >= 0,
        "init_first_moment": group["init_first_moment"] in ("grad", "zeros"),
        "decoupled_weight_decay": group["decoupled_weight_decay"] >= 0,
    }.items():
        if not inside:
            raise ValueError(f"AdamFamily: {name} = {group[name]!r} is out of range")
    if member == "adabound" and not (group["bounds"] and 0 < group["bounds"][0] <= group["bounds"][1]):
        raise ValueError("AdamFamily: member 'adabound' needs bounds = (c_l, c_u) with 0 < c_l <= c_u")
    if group["bias_correction"] and member not in CORRECTABLE:
        raise ValueError(f"AdamFamily: bias_correction is for {', '.join(CORRECTABLE)}, not {member}")
