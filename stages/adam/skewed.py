"""adam-skewed: under skewed noise a small beta ends at a floor that no smaller step size lowers (E4).

Reads nothing. Writes `runs/adam/<scale>/skewed/`, table T4: per member, beta and step size, the squared gradient norm
averaged over the second half of the steps.
"""

from functools import partial
from itertools import product

from stages.adam.lab import Sheet, column, descend, marks_of, run_experiment
from stages.adam.method.noise import Noise, skewed
from stages.adam.method.problems.quadratic_welsch import standard
from stages.adam.method.recursion import Recursion
from stages.adam.params import AdamParams
from stages.common.stage.params import load_params
from stages.common.stage.run import run

DATA = "quadratic + dip, d=10, skewed noise"
DIMENSION, START = 10, 0.5
SIGMA, C = 2.0, 30.0
BETA2, G0 = 0.9, 1e-8
MEMBERS = ("adam", "amsgrad", "adafom", "sgdm")
SGDM_FACTOR = 5.0  # heavy ball has no scale to enlarge its steps


def main() -> None:
    """Run all members."""
    params = load_params(AdamParams, "adam")
    run_experiment("skewed", params, MEMBERS, partial(measure, params=params))


def measure(member: str, params: AdamParams) -> Sheet:
    """All betas and step sizes of one member."""
    sheet = Sheet(params, "skewed", params.skewed, params.seeds)
    T, settings = params.skewed.steps, list(product(params.skewed.betas, params.skewed.etas))
    factor = SGDM_FACTOR if member == "sgdm" else 1.0
    beta, eta = column(beta for beta, _ in settings), factor * column(eta for _, eta in settings)
    noise = Noise(params.seeds, 0, skewed(SIGMA, C, DIMENSION))
    problem = standard(DIMENSION, start=START)
    probe = descend(problem, Recursion(member, BETA2, G0), noise, eta, beta, len(settings), marks_of([T]))
    for r, (beta_r, eta_r) in enumerate(settings):
        setting = f"beta={beta_r:g}, eta={factor * eta_r:g}"
        sheet.add("T4", member, setting, "tail_grad_sq", probe.tail("grad_sq", T)[r], "", DATA)
        points = {t: values_RS[r] for t, values_RS in probe.now_at["grad_sq"].items()}
        sheet.curve(member, setting, "grad_sq", points)
    return sheet


if __name__ == "__main__":
    run(main)
