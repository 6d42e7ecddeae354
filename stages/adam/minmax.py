"""adam-minmax: primal-dual methods with and without a moving average of the primal gradient (E7).

Reads `data/adam/<scale>/digits.safetensors`. Writes `runs/adam/<scale>/minmax/`, table T6: on a problem where everything is
exact, means over time for every horizon; on AUC maximisation with a small network, tails of exact measurements every 50
steps and test AUC.
"""

from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from stages.adam.lab import Sheet, column, marks_of, run_experiment
from stages.adam.method.minmax import PDSM, PDAda
from stages.adam.method.noise import Noise, choices, coin
from stages.adam.method.probe import GradientProbe
from stages.adam.method.problems.auc import AUCMaximisation, auc
from stages.adam.method.problems.matrices import unit_norm
from stages.adam.method.problems.ncsc_quadratic import NCSCQuadratic
from stages.adam.method.problems.quadratic_welsch import standard
from stages.adam.method.recursion import Recursion
from stages.adam.params import AdamParams
from stages.common.stage.params import load_params
from stages.common.stage.run import run

QUADRATIC, AUC = "min-max quadratic + dip", "AUC, digit 8 of digits"
D_X, D_Y, SIGMA = 20, 10, 1.0
POSITIVES, NEGATIVES = 30, 970  # of the training set
BATCH_POSITIVES, BATCH_NEGATIVES, EVERY = 8, 24, 50
QUADRATIC_JOBS = ("sgda", "pdsm", "pdada")
AUC_JOBS = ("sgda", "pdsm", "pdada", "bce-adam")


def main() -> None:
    """Run all methods on both problems."""
    params = load_params(AdamParams, "adam")
    prepared = Path("data/adam") / params.scale
    jobs = [*(f"quadratic-{job}" for job in QUADRATIC_JOBS), *(f"auc-{job}" for job in AUC_JOBS)]
    run_experiment("minmax", params, jobs, partial(measure, params=params, prepared=prepared), [prepared])


def measure(job: str, params: AdamParams, prepared: Path) -> Sheet:
    """One method on one problem."""
    problem, _, method = job.partition("-")
    if problem == "quadratic":
        return quadratic(method, params)
    return auc_maximisation(method, params, prepared)


def quadratic(method: str, params: AdamParams) -> Sheet:
    """All horizons; gamma = 4/sqrt(T) (1 for sgda), eta_x = 2/sqrt(T) (3 for pdada), eta_y = 6/sqrt(T)."""
    horizons = params.minmax.horizons
    sheet = Sheet(params, "minmax", params.minmax, params.seeds)
    root = column(T**-0.5 for T in horizons)
    beta = torch.zeros_like(root) if method == "sgda" else 1 - (4 * root).clamp(max=1)
    eta_x, eta_y = (3 if method == "pdada" else 2) * root, 6 * root
    stepper = PDAda(beta2=0.99, G0=1.0) if method == "pdada" else PDSM()
    problem = NCSCQuadratic(standard(D_X, start=1.0), unit_norm(D_Y, D_X, seed=1), mu=1.0)
    noise_x, noise_y = (
        Noise(params.seeds, i, coin(SIGMA, d)) for i, d in enumerate((D_X, D_Y))
    )  # fmt: skip
    probe = GradientProbe(marks_of(horizons))
    x = problem.x0.expand(len(horizons), len(params.seeds), -1)
    y = torch.zeros(*x.shape[:2], D_Y, dtype=torch.float64)
    for t in range(horizons[-1]):
        exact, best = problem.grad(x), problem.best_y(x)
        grad_x, grad_y = problem.grad_x(x, y), problem.grad_y(x, y)
        old_y = y
        x, y = stepper.step(x, y, grad_x + noise_x.at(t), grad_y + noise_y.at(t), eta_x, eta_y, beta)
        probe.see(
            grad_sq=exact.square().sum(-1),
            dual_sq=(old_y - best).square().sum(-1),
            error_sq=(stepper.v - grad_x).square().sum(-1),
        )
    for r, T in enumerate(horizons):
        for metric, name in {"avg_grad_sq": "grad_sq", "avg_dual_sq": "dual_sq", "avg_D": "error_sq"}.items():
            sheet.add("T6", method, f"T={T}", metric, probe.mean(name, T)[r], "", QUADRATIC)
        sheet.add("T6", method, f"T={T}", "tail_grad_sq", probe.tail("grad_sq", T)[r], "", QUADRATIC)
    last = {t: values_RS[-1] for t, values_RS in probe.now_at["grad_sq"].items()}
    sheet.curve(method, f"{QUADRATIC}, T={horizons[-1]}", "grad_sq", last)
    return sheet


def auc_maximisation(method: str, params: AdamParams, prepared: Path) -> Sheet:
    """gamma = .1 (1 for sgda), eta_x = .1 (.003 with a scale), eta_y = .1; 8 positives in a batch of 32."""
    seeds, T = params.seeds, params.minmax.auc_steps
    sheet = Sheet(params, "minmax", params.minmax, seeds)
    images = load_file(prepared / "digits.safetensors")
    is_eight_N = images["train_y"] == 8
    rows_N = torch.cat([is_eight_N.nonzero()[:POSITIVES, 0], (~is_eight_N).nonzero()[:NEGATIVES, 0]])
    problem = AUCMaximisation(images["train_x"][rows_N], is_eight_N[rows_N])
    adaptive = method in ("pdada", "bce-adam")
    stepper = PDSM(Recursion("adam", 0.999, 1e-3) if adaptive else None)
    beta, eta_x = 0.0 if method == "sgda" else 0.9, 0.003 if adaptive else 0.1
    positives, negatives = (
        Noise(seeds, i, choices(count, batch))
        for i, (count, batch) in enumerate(((POSITIVES, BATCH_POSITIVES), (NEGATIVES, BATCH_NEGATIVES)))
    )
    probe = GradientProbe(range(1, T // EVERY + 1))
    w = torch.nn.functional.pad(problem.network.start(seeds), (0, 2))  # a = b = 0
    alpha_S = torch.zeros(len(seeds), dtype=torch.float64)
    for t in range(T):
        batch_SB = torch.cat([positives.at(t), POSITIVES + negatives.at(t)], dim=1)
        old_w, old_alpha = w, alpha_S
        if method == "bce-adam":
            w = stepper.primal.step(w, problem.cross_entropy_oracle(w, batch_SB), eta_x, beta)
            continue
        grad_w, grad_alpha = problem.oracle(w, alpha_S, batch_SB)
        w, alpha_S = stepper.step(w, alpha_S, grad_w, grad_alpha, eta_x, 0.1, beta)
        if (t + 1) % EVERY == 0:
            probe.see(
                grad_sq=problem.grad_x(old_w, problem.best_alpha(old_w)).square().sum(-1),
                error_sq=(stepper.v - problem.grad_x(old_w, old_alpha)).square().sum(-1),
            )
    for metric, points in probe.now_at.items():
        sheet.curve(method, AUC, metric, {EVERY * n: values_S for n, values_S in points.items()})
    measured: dict[str, Tensor] = {"auc": auc(problem.scores(w, images["test_x"]), images["test_y"] == 8)}
    if method != "bce-adam":
        measured["tail_grad_sq"] = probe.tail("grad_sq", T // EVERY)
        measured["tail_D"] = probe.tail("error_sq", T // EVERY)
    for metric, values_S in measured.items():
        sheet.add("T6", method, f"T={T}", metric, values_S, "", AUC)
    return sheet


if __name__ == "__main__":
    run(main)
