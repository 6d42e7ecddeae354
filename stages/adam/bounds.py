"""Does the theorem hold for what was measured? (E2)

The bounds are evaluated with the measured range of the scale and the measured first error, and compared with the measured
means over time: a ratio above 1 is a violation.
"""

from collections.abc import Callable
from typing import Any

import pandas as pd

from stages.adam.method.problems.quadratic_welsch import QuadraticWelsch
from stages.adam.method.recursion import MEMBERS, theory_bounds
from stages.adam.method.theorem import step_limit, theorem_bound
from stages.adam.rate import BOUNDS, G0, SIGMA


def bound_rows(
    measured: pd.DataFrame, problem: QuadraticWelsch, step_of: Callable[[int], tuple[float, float]]
) -> list[dict[str, Any]]:
    """Rows per member, horizon and seed to add to table T1.

    `B1_ratio` and `B2_ratio` are left over right-hand side, whose mean over seeds is what the theorem bounds. `step_margin`
    is the largest allowed step size over the one used: below 1 the theorem does not apply. `c_l` and `c_u` are measured;
    `c_l_theory` and `c_u_theory` are what the member's formula gives for the measured gradients.

    Args:
        measured: rows of T1 from `rate`.
        problem: what was descended.
        step_of: T -> gamma, eta.
    """
    delta_F = float(problem.value(problem.x0)) - problem.F_star
    rows: list[dict[str, Any]] = []
    for (member, setting), group in measured.groupby(["method", "setting"], sort=False):
        if not MEMBERS[str(member)].momentum:
            continue  # a control: gamma is 1 whatever the schedule says
        T = int(str(setting).removeprefix("T="))
        gamma, eta = step_of(T)
        wide = group.pivot_table(index="seed", columns="metric", values="value")
        c_l, c_u = float(wide["s_min"].min()), float(wide["s_max"].max())
        bound = theorem_bound(
            problem.L, SIGMA**2, delta_F, eta, gamma, c_l, c_u, T, float(wide["D_0"].mean())
        )
        size = wide["v_norm_max" if member == "adam_plus" else "g_max"].max()
        c_l_theory, c_u_theory = theory_bounds(str(member), float(size), G0, BOUNDS)
        derived = {
            "B1_ratio": wide["avg_grad_sq"] / bound.B1,
            "B2_ratio": wide["avg_D"] / bound.B2,
            "step_margin": step_limit(problem.L, gamma, c_l, c_u) / eta,
            "c_l": c_l, "c_u": c_u, "c_l_theory": c_l_theory, "c_u_theory": c_u_theory,
        }  # fmt: skip
        common = group.iloc[0].to_dict()
        for metric, values in derived.items():
            for seed, value in pd.Series(values, index=wide.index).items():
                rows.append({**common, "metric": metric, "seed": int(str(seed)), "value": float(value)})
    return rows
