"""Entropic unbalanced optimal transport between classes (card, "Step 2" and "Step 3").

    min over plan >= 0 of  <plan, cost> + eps R(plan) + tau_s KL(plan 1 | a) + tau_t KL(plan^T 1 | b)

with R(plan) = sum plan (log plan - 1) for the reference "ones" and KL(plan | a b^T) for "product". tau = inf
fixes that side's masses. Shapes: S source classes, T target classes; cost `[S, T]`, a `[S]`, b `[T]`.

Who solves it: POT wherever it is right (`transport_plan` says where), `unbalanced_sinkhorn` in the log domain
elsewhere.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Metric = Literal["cosine", "euclidean"]
Reference = Literal["ones", "product"]
Relaxation = tuple[float, float]

PLAIN_LIMIT = 100.0  # largest cost / eps with which a plain kernel exp(-cost / eps) keeps all its digits


def class_cost(source_SD: Tensor, target_TD: Tensor, metric: Metric = "cosine", scale: float = 0.1) -> Tensor:
    """Cost `[S, T]` between class means.

    (1 - cosine similarity) / scale, or Euclidean distance of the raw rows / scale.

    Computed in float64 from one product of the two matrices, never through an `[S, T, D]` tensor.

    Raises:
        ValueError: the widths differ, or a mean is zero or not finite and the metric needs its direction.
    """
    source_SD, target_TD = source_SD.double(), target_TD.double()
    if source_SD.shape[1] != target_TD.shape[1]:
        raise ValueError(
            f"source means have {source_SD.shape[1]} features, target means {target_TD.shape[1]}"
        )
    if metric == "euclidean":
        return torch.cdist(source_SD, target_TD) / scale
    for name, rows in (("source", source_SD), ("target", target_TD)):
        norms = rows.norm(dim=1)
        if not bool(((norms > 0) & norms.isfinite()).all()):
            raise ValueError(
                f"{name} class {int((~((norms > 0) & norms.isfinite())).nonzero()[0])} has no mean feature"
            )
    unit_SD, unit_TD = (rows / rows.norm(dim=1, keepdim=True) for rows in (source_SD, target_TD))
    return (1 - unit_SD @ unit_TD.T) / scale


@dataclass(frozen=True)
class Transport:
    """A solved problem: `log_plan [S, T]` (float64), and how it was reached.

    Its logarithm ranks classes even where costs are so large that the plan itself is zero in floating point.
    `residual` is the last change of the scalings, in relative terms; `solver` names what computed the plan.
    """

    log_plan: Tensor
    iterations: int
    residual: float
    solver: str

    @property
    def plan(self) -> Tensor:
        """`[S, T]`."""
        return self.log_plan.exp()

    @property
    def log_importance(self) -> Tensor:
        """Logarithm `[S]` of the mass of each source class, the row sums of the plan."""
        return torch.logsumexp(self.log_plan, 1)


def unbalanced_sinkhorn(
    cost_ST: Tensor,
    a_S: Tensor,
    b_T: Tensor,
    eps: float,
    tau: Relaxation,
    reference: Reference = "ones",
    max_iter: int = 1000,
    tol: float = 1e-6,
) -> Transport:
    """Sinkhorn's scaling loop in the log domain, where no kernel entry can underflow.

    The iterates are those of the official loop (u = 1/S, v = 1/T at the start, then u, then v); it stops when
    the mean of the largest relative changes of u and v is below `tol`. The loop contracts by tau_s tau_t /
    ((tau_s + eps)(tau_t + eps)).

    Raises:
        ValueError: a mass, `eps` or `tau` is not positive, or shapes do not fit.
    """
    if cost_ST.shape != (len(a_S), len(b_T)):
        raise ValueError(f"cost is {tuple(cost_ST.shape)}, the masses are for {(len(a_S), len(b_T))}")
    if not (eps > 0 and min(tau) > 0 and bool((a_S > 0).all()) and bool((b_T > 0).all())):
        raise ValueError("masses, eps and tau must be positive")
    log_a, log_b = a_S.double().log(), b_T.double().log()
    log_kernel_ST = -cost_ST.double() / eps
    if reference == "product":
        log_kernel_ST = log_kernel_ST + log_a[:, None] + log_b
    power_s, power_t = (1.0 if math.isinf(t) else t / (t + eps) for t in tau)
    log_u = torch.full_like(log_a, -math.log(len(log_a)))
    log_v = torch.full_like(log_b, -math.log(len(log_b)))
    iterations, residual = 0, math.inf
    while iterations < max_iter and residual >= tol:
        before_u, before_v = log_u, log_v
        log_u = power_s * (log_a - torch.logsumexp(log_kernel_ST + log_v, 1))
        log_v = power_t * (log_b - torch.logsumexp(log_kernel_ST + log_u[:, None], 0))
        residual = float((log_u - before_u).abs().max() + (log_v - before_v).abs().max()) / 2
        iterations += 1
    return Transport(log_kernel_ST + log_u[:, None] + log_v, iterations, residual, "log-domain")


def transport_plan(
    cost_ST: Tensor,
    a_S: Tensor,
    b_T: Tensor,
    eps: float,
    tau: Relaxation,
    reference: Reference = "ones",
    max_iter: int = 1000,
    tol: float = 1e-6,
) -> Transport:
    """Solve with POT where it is right, in the log domain elsewhere.

    POT is right for one tau on both sides while cost / eps is moderate, and for balanced problems of equal
    masses. With unlike tau its translation-invariant method returns a wrong plan, and around cost / eps =
    1000 its plain kernel underflows and its stabilised one stalls (card, "Pitfalls"); the paper's own setting
    tau = (1, 100) is of the first kind.
    """
    balanced = math.isinf(min(tau))
    if tau[0] != tau[1] or (not balanced and float(cost_ST.max()) / eps > PLAIN_LIMIT):
        return unbalanced_sinkhorn(cost_ST, a_S, b_T, eps, tau, reference, max_iter, tol)
    import ot

    a, b, cost = (x.double().numpy() for x in (a_S, b_T, cost_ST))
    if balanced:
        # the reference adds a constant when both marginals are fixed
        plan, log = ot.sinkhorn(a, b, cost, eps, "sinkhorn_log", max_iter, tol, log=True)
        iterations = log["niter"]
    else:
        prior = np.ones_like(cost) if reference == "ones" else np.outer(a, b)
        plan, log = ot.unbalanced.sinkhorn_unbalanced(
            a, b, cost, eps, tau[0], "sinkhorn", "kl", prior, numItermax=max_iter, stopThr=tol, log=True
        )
        iterations = len(log["err"])
    return Transport(torch.as_tensor(plan).log(), iterations, float(log["err"][-1]), "POT")


def transport_objective(
    plan_ST: Tensor,
    cost_ST: Tensor,
    a_S: Tensor,
    b_T: Tensor,
    eps: float,
    tau: Relaxation,
    reference: Reference = "ones",
) -> float:
    """Value of the minimised function at any plan; a side with tau = inf counts nothing."""
    value = (plan_ST * cost_ST).sum()
    if reference == "ones":
        value = value + eps * (torch.xlogy(plan_ST, plan_ST) - plan_ST).sum()
    else:
        value = value + eps * generalised_kl(plan_ST, a_S[:, None] * b_T)
    for weight, marginal, mass in ((tau[0], plan_ST.sum(1), a_S), (tau[1], plan_ST.sum(0), b_T)):
        if not math.isinf(weight):
            value = value + weight * generalised_kl(marginal, mass)
    return float(value)


def generalised_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p | q) = sum p log(p / q) - p + q, for non-negative p and positive q of any total mass."""
    return (torch.xlogy(p, p) - torch.xlogy(p, q) - p + q).sum()
