"""Which source classes to fine-tune with.

Unbalanced transport and its baselines (card, "Step 4", "Components to build").

Every method ranks all source classes, best first; a selection is the first K of a ranking.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from stages.uot.method.transport import Metric, class_cost, transport_plan

SelectionMethod = Literal[
    "uot",
    "uot-1step",
    "nearest",
    "mean-cost",
    "greedy-ot",
    "balanced-ot",
    "round-robin",
    "random",
    "farthest",
    "all",
]
SELECTION_METHODS: tuple[SelectionMethod, ...] = get_args(SelectionMethod)


@dataclass(frozen=True)
class TransportSettings:
    """The official ones by default; masses are one per class (card, "Step 2", "Step 3")."""

    metric: Metric = "cosine"
    scale: float = 0.1
    eps: float = 1.0
    tau_source: float = 1.0
    tau_target: float = 100.0


@dataclass(frozen=True)
class Ranking:
    """`order`: ids of the source classes that have a mean, best first.

    `score` (higher is better) in the same order.

    `iterations` of the transport solver, 0 where none was needed.
    """

    order: list[int]
    score: list[float]
    iterations: int = 0


def rank_classes(
    method: SelectionMethod,
    source_SD: Tensor,
    target_TD: Tensor,
    settings: TransportSettings | None = None,
    target_count_T: Tensor | None = None,
    seed: int = 0,
) -> Ranking:
    """Rank the source classes for a target set by their class means.

    uot          mass of the class in the unbalanced plan, its row sum (the paper's); the score is its
    logarithm uot-1step    the same after one loop with flat target weights: the cheap ablation nearest
    least cost to any target class mean-cost    least cost averaged over target classes greedy-ot    least
    earth mover's distance to the target images (Cui et al. 2018), which for the single mean of one class is
    the cost averaged over target classes, weighted by their images (`target_count_T`) balanced-ot  least cost
    of the mass that a balanced entropic plan (masses 1/S, 1/T) sends from the class; its row sums are all
    equal by construction and rank nothing round-robin  target classes take turns in taking their nearest free
    source class random       an order drawn from `seed` farthest     `nearest` reversed: a control all
    the source's own order; select all of it

    Rows that are not finite (classes without samples) are left out on either side.

    Raises:
        ValueError: no source or no target class has a mean.
    """
    settings = settings or TransportSettings()
    alive_s = source_SD.isfinite().all(1).nonzero().flatten()
    alive_t = target_TD.isfinite().all(1).nonzero().flatten()
    if not len(alive_s) or not len(alive_t):
        raise ValueError("no class with a mean on the source or the target side")
    cost_ST = class_cost(source_SD[alive_s], target_TD[alive_t], settings.metric, settings.scale)
    iterations = 0
    match method:
        case "uot" | "uot-1step" | "balanced-ot":
            score_S, iterations = _transport_score(method, cost_ST, settings)
        case "nearest":
            score_S = -cost_ST.min(1).values
        case "farthest":
            score_S = cost_ST.min(1).values
        case "mean-cost":
            score_S = -cost_ST.mean(1)
        case "greedy-ot":
            weight_T = torch.ones(len(alive_t)) if target_count_T is None else target_count_T[alive_t]
            score_S = -(cost_ST @ (weight_T.double() / weight_T.sum()))
        case "round-robin":
            score_S = -_round_robin_turns(cost_ST)
        case "random":
            score_S = -torch.randperm(len(alive_s), generator=torch.Generator().manual_seed(seed)).double()
        case "all":
            score_S = -torch.arange(len(alive_s)).double()
    # the official code takes the last K of an ascending sort: of equals the later class comes first
    order_S = torch.argsort(score_S, stable=True).flip(0)
    return Ranking(alive_s[order_S].tolist(), score_S[order_S].tolist(), iterations)


def _transport_score(
    method: SelectionMethod, cost_ST: Tensor, settings: TransportSettings
) -> tuple[Tensor, int]:
    n_source, n_target = cost_ST.shape
    a_S, b_T = torch.ones(n_source, dtype=torch.float64), torch.ones(n_target, dtype=torch.float64)
    if method == "balanced-ot":
        tau = (math.inf, math.inf)
        plan = transport_plan(cost_ST, a_S / n_source, b_T / n_target, settings.eps, tau).plan
        return -(plan * cost_ST).sum(1) * n_source, 0
    if method == "uot-1step":
        # with v = 1 the row sums are a power of K 1, so that log(K 1) ranks the same
        return torch.logsumexp(-cost_ST / settings.eps, 1), 1
    tau = (settings.tau_source, settings.tau_target)
    result = transport_plan(cost_ST, a_S, b_T, settings.eps, tau)
    return result.log_importance, result.iterations


def _round_robin_turns(cost_ST: Tensor) -> Tensor:
    """The turn `[S]` at which each source class is taken."""
    n_source, n_target = cost_ST.shape
    nearest_ST = torch.argsort(cost_ST, dim=0, stable=True)
    turn_S = torch.full((n_source,), -1, dtype=torch.float64)
    position = [0] * n_target
    for turn in range(n_source):
        target = turn % n_target
        while turn_S[nearest_ST[position[target], target]] >= 0:
            position[target] += 1
        turn_S[nearest_ST[position[target], target]] = turn
    return turn_S


def concept_purity(selected: list[int], groups: list[str], relevant: set[str]) -> float:
    """Share of the selected classes whose concept group is among the relevant ones."""
    return sum(groups[index] in relevant for index in selected) / len(selected)


def overlap(first: list[int], second: list[int]) -> float:
    """|A and B| / |A| of two selections of equal size."""
    return len(set(first) & set(second)) / len(first)
