"""adam-rate: how fast every member converges, and how far off its first moment is (E1 to E3).

Reads nothing. Writes `runs/adam/<scale>/rate/`. Table T1: per member and horizon T, means over time and extremes of the
scale, from which `evaluate` fits rates and checks the theorem's bounds. Table T2: the first moment's error against gamma.
"""

from functools import partial

import torch

from stages.adam.lab import Sheet, column, descend, marks_of, run_experiment
from stages.adam.method.noise import Noise, coin
from stages.adam.method.problems.quadratic_welsch import QuadraticWelsch, standard
from stages.adam.method.recursion import Recursion
from stages.adam.params import AdamParams
from stages.common.stage.params import load_params
from stages.common.stage.run import run

DATA = "quadratic + dip, d=20"
DIMENSION = 20
SIGMA = 1.0
STEP = 0.16  # eta / gamma: within the theorem's limit for every member
BETA2, G0, BOUNDS = 0.999, 1.0, (0.2, 1.0)
FROZEN = "x frozen"  # the row whose step size is zero


def main() -> None:
    """Run all members."""
    params = load_params(AdamParams, "adam")
    run_experiment("rate", params, [*params.rate.members, FROZEN], partial(measure, params=params))


def problem() -> QuadraticWelsch:
    """The problem of E1 to E3."""
    return standard(DIMENSION)


def step_of(T: int) -> tuple[float, float]:
    """gamma and eta for the horizon T."""
    gamma = min(1.0, 4 / T**0.5)
    return gamma, STEP * gamma


def measure(job: str, params: AdamParams) -> Sheet:
    """All horizons and all gammas of one member."""
    sheet = Sheet(params, "rate", params.rate, params.seeds)
    if job != FROZEN:
        rates(job, sheet, params)
    errors(job, sheet, params)
    return sheet


def rates(member: str, sheet: Sheet, params: AdamParams) -> None:
    """E1 and E2: one run per horizon, gamma and eta ~ T^-1/2."""
    horizons = params.rate.horizons
    gamma, eta = (column(values) for values in zip(*map(step_of, horizons), strict=True))
    noise = Noise(params.seeds, 0, coin(SIGMA, DIMENSION))
    recursion = Recursion(member, BETA2, G0, BOUNDS)
    probe = descend(problem(), recursion, noise, eta, 1 - gamma, len(horizons), marks_of(horizons))
    for r, T in enumerate(horizons):
        s_min, s_max = probe.range_at["s"][T]
        g_min, g_max = probe.range_at["g"][T]
        for metric, values_RS in {
            "avg_grad_sq": probe.mean("grad_sq", T),
            "avg_D": probe.mean("error_sq", T),
            "D_0": probe.now_at["error_sq"][1],
            "s_min": s_min,
            "s_max": s_max,
            "g_max": torch.maximum(-g_min, g_max),
            "v_norm_max": probe.range_at["v_norm"][T][1],
        }.items():
            sheet.add("T1", member, f"T={T}", metric, values_RS[r], "", DATA)
    last = {t: values_RS[-1] for t, values_RS in probe.now_at["grad_sq"].items()}
    sheet.curve(member, f"T={horizons[-1]}", "grad_sq", last)


def errors(member: str, sheet: Sheet, params: AdamParams) -> None:
    """E3: the first moment's error at fixed gammas, second half of the steps."""
    gammas, T = params.rate.gammas, params.rate.variance_steps
    gamma = column(gammas)
    noise = Noise(params.seeds, 1, coin(SIGMA, DIMENSION))
    recursion = Recursion("sgdm" if member == FROZEN else member, BETA2, G0, BOUNDS)
    eta = 0.0 if member == FROZEN else STEP * gamma
    probe = descend(problem(), recursion, noise, eta, 1 - gamma, len(gammas), marks_of([T]))
    for r, value in enumerate(gammas):
        sheet.add("T2", member, f"gamma={value:g}", "tail_D", probe.tail("error_sq", T)[r], "", DATA)
        points = {t: values_RS[r] for t, values_RS in probe.now_at["error_sq"].items()}
        sheet.curve(member, f"gamma={value:g}", "D", points)


if __name__ == "__main__":
    run(main)
