"""Selecting among ImageNet's classes for CUB: this project's solver against POT's, time and objective.

Every solver gets the paper's problem (MoCo-v2 class means of the golden case, tau = 1 and 100) at the paper's cost scale
and at one where exp(-cost) underflows. Interleaved in one process, median of the runs.

    python -m benchmarks.uot_transport [--threads 1] [--runs 5]
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import ot
import torch
from torch import Tensor

from stages.uot.method.transport import class_cost, transport_objective, unbalanced_sinkhorn

CASE = Path(__file__).parents[1] / "tests" / "golden" / "uot" / "uot_real_ssl.npz"
TAU, TOLERANCE, ITERATIONS = (1.0, 100.0), 1e-6, 1000
POT_METHODS = ("sinkhorn", "sinkhorn_stabilized", "sinkhorn_translation_invariant")


def solvers(cost: Tensor, a: Tensor, b: Tensor) -> dict[str, Callable[[], Tensor]]:
    """By name, what computes the plan."""

    def pot(method: str) -> Tensor:
        plan = ot.unbalanced.sinkhorn_unbalanced(
            a.numpy(),
            b.numpy(),
            cost.numpy(),
            1.0,
            TAU,
            method,
            "entropy",
            numItermax=ITERATIONS,
            stopThr=TOLERANCE,
        )
        return torch.from_numpy(plan)

    own = {"encore, log-domain": lambda: unbalanced_sinkhorn(cost, a, b, 1.0, TAU, tol=TOLERANCE).plan}
    return own | {f"POT, {method}": lambda method=method: pot(method) for method in POT_METHODS}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # numerical errors show in the objective
    with np.load(CASE, allow_pickle=False) as case:
        source, target = (torch.from_numpy(case[key]) for key in ("imagenet_class_mean", "CUB/class_mean"))
    for scale in (0.1, 1e-4):
        cost = class_cost(source, target, scale=scale)
        a, b = (torch.ones(n, dtype=torch.float64) for n in cost.shape)
        print(f"p_m = {scale:g}: {len(a)} x {len(b)} classes, largest cost {float(cost.max()):.0f}")
        every = solvers(cost, a, b)
        seconds: dict[str, list[float]] = {name: [] for name in every}
        plans: dict[str, Tensor] = {}
        for _ in range(options.runs):
            for name, solve in every.items():
                start = time.perf_counter()
                plans[name] = solve()
                seconds[name].append(time.perf_counter() - start)
        for name, plan in plans.items():
            objective = transport_objective(plan, cost, a, b, 1.0, TAU)
            print(
                f"  {name:38s} {1e3 * median(seconds[name]):8.1f} ms   objective {objective:.6f}   mass {plan.sum():.4g}"
            )


if __name__ == "__main__":
    main()
