"""adam-compositional: a moving average of the inner value removes the bias of a function of an expectation (E8).

Reads nothing. Writes `runs/adam/<scale>/compositional/`, table T6: per method and horizon, means over time of the
squared gradient norm and of the error of the inner value.
"""

from functools import partial

import torch

from stages.adam.lab import Sheet, column, marks_of, run_experiment
from stages.adam.method.compositional import CompositionalMA
from stages.adam.method.noise import Noise, coin
from stages.adam.method.probe import GradientProbe
from stages.adam.method.problems.compositional_welsch import CompositionalWelsch
from stages.adam.method.problems.matrices import normal_vector, unit_norm
from stages.adam.method.recursion import Recursion
from stages.adam.params import AdamParams
from stages.common.stage.params import load_params
from stages.common.stage.run import run

DATA = "compositional dip"
DIMENSION, START = 20, 2.0
INNER_NOISE, JACOBIAN_NOISE = 0.5 * DIMENSION**0.5, 0.3  # norms: .5 a coordinate, .3 in all
# factor of eta = factor/sqrt(T); 8 is beyond the condition eta <= c gamma / L, a demonstration
JOBS = {"moving average": 1.0, "moving average, adam": 1.0, "naive": 1.0, "moving average, eta x8": 8.0}


def main() -> None:
    """Run all methods."""
    params = load_params(AdamParams, "adam")
    run_experiment("compositional", params, list(JOBS), partial(measure, params=params))


def measure(method: str, params: AdamParams) -> Sheet:
    """All horizons of one method; gamma = gamma_z = 4/sqrt(T)."""
    horizons = params.compositional.horizons
    sheet = Sheet(params, "compositional", params.compositional, params.seeds)
    root = column(T**-0.5 for T in horizons)
    beta, eta = 1 - (4 * root).clamp(max=1), JOBS[method] * root
    outer = Recursion("adam", 0.99, 1.0) if method.endswith("adam") else Recursion("sgdm")
    stepper = CompositionalMA(outer, naive=method == "naive")
    problem = CompositionalWelsch(unit_norm(DIMENSION, DIMENSION), normal_vector(DIMENSION, seed=1))
    inner_noise = Noise(params.seeds, 0, coin(INNER_NOISE, DIMENSION))
    outer_noise = Noise(params.seeds, 1, coin(JACOBIAN_NOISE, DIMENSION))
    probe = GradientProbe(marks_of(horizons))
    x = torch.full((len(horizons), len(params.seeds), DIMENSION), START, dtype=torch.float64)
    for t in range(horizons[-1]):
        exact, inner, noise = problem.grad(x), problem.inner(x), outer_noise.at(t)
        at_x = partial(problem.grad_at, x)
        x = stepper.step(
            x, inner + inner_noise.at(t), lambda z, f=at_x, n=noise: f(z) + n, eta, beta, beta  # type: ignore[misc]
        )  # fmt: skip
        assert stepper.z is not None
        probe.see(grad_sq=exact.square().sum(-1), inner_sq=(stepper.z - inner).square().sum(-1))
    for r, T in enumerate(horizons):
        sheet.add("T6", method, f"T={T}", "avg_grad_sq", probe.mean("grad_sq", T)[r], "", DATA)
        sheet.add("T6", method, f"T={T}", "tail_grad_sq", probe.tail("grad_sq", T)[r], "", DATA)
        sheet.add("T6", method, f"T={T}", "avg_inner_sq", probe.mean("inner_sq", T)[r], "", DATA)
    last = {t: values_RS[-1] for t, values_RS in probe.now_at["grad_sq"].items()}
    sheet.curve(method, f"T={horizons[-1]}", "grad_sq", last)
    return sheet


if __name__ == "__main__":
    run(main)
