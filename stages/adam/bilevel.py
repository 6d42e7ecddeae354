"""adam-bilevel: stochastic momentum bilevel with truncated Neumann series (E9).

Reads `data/adam/<scale>/digits.safetensors`. Writes `runs/adam/<scale>/bilevel/`, table T6: on a problem where everything
is exact, the squared hypergradient norm per number of terms K and horizon; on hyper-cleaning, the validation loss and how
well the learnt weights tell wrong labels from right ones.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Generator, Tensor

from stages.adam.lab import Sheet, column, marks_of, run_experiment
from stages.adam.method.bilevel import SMB, Neumann, neumann_inverse_vector
from stages.adam.method.noise import Noise, choices, coin
from stages.adam.method.probe import GradientProbe
from stages.adam.method.problems.auc import auc
from stages.adam.method.problems.bilevel_quadratic import BilevelQuadratic
from stages.adam.method.problems.hyper_cleaning import CLASSES, HyperCleaning
from stages.adam.method.problems.matrices import normal_vector, unit_norm, with_eigenvalues
from stages.adam.method.problems.quadratic_welsch import standard
from stages.adam.method.recursion import Recursion
from stages.adam.params import AdamParams
from stages.common.stage.params import load_params
from stages.common.stage.run import run

QUADRATIC, CLEANING = "bilevel quadratic + dip", "hyper-cleaning, digits with 40 % wrong labels"
D_X, D_Y, SIGMA, C = 20, 15, 0.5, 1.0
HESSIAN_NOISE = 0.1  # samples are H ± .1 I
TRAIN, VALIDATION, WRONG = 800, 400, 0.4
CLEANING_BATCH, CLEANING_TERMS, CLEANING_C = 64, 10, 8.0
# beta and step sizes of hyper-cleaning, where the card gives none; adaptive, as a sample's gradient is small
CLEANING_BETA, CLEANING_ETA_X, CLEANING_ETA_Y, CLEANING_G0 = 0.9, 0.05, 0.2, 1e-6
NOISY_ONLY = "no cleaning"  # the control: all weights stay equal


@dataclass(frozen=True)
class Method:
    """A row on the quadratic problem."""

    K: int
    mode: Neumann = "sum"
    eta: float = 0.3  # eta_x = eta / sqrt(T)
    member: str = "sgdm"


def methods(params: AdamParams) -> dict[str, Method]:
    """The rows by name: every K with the sum; random truncation at two step sizes and an adaptive one at the largest K."""
    K = max(params.bilevel.terms)
    return {
        **{f"smb K={terms}": Method(terms) for terms in params.bilevel.terms},
        f"smb K={K}, adam": Method(K, member="adam"),
        f"smb K={K}, random": Method(K, "random"),
        f"smb K={K}, random, eta x3.3": Method(K, "random", eta=1.0),
    }


def main() -> None:
    """Run all methods on both problems."""
    params = load_params(AdamParams, "adam")
    prepared = Path("data/adam") / params.scale
    jobs = [*methods(params), "cleaning", NOISY_ONLY]
    run_experiment("bilevel", params, jobs, partial(measure, params=params, prepared=prepared), [prepared])


def measure(job: str, params: AdamParams, prepared: Path) -> Sheet:
    """One method on one problem."""
    if job in ("cleaning", NOISY_ONLY):
        return cleaning(job, params, prepared)
    return quadratic(job, params)


def quadratic(name: str, params: AdamParams) -> Sheet:
    """All horizons of one method; gamma = 4/sqrt(T), eta_y = 6/sqrt(T)."""
    method, horizons = methods(params)[name], params.bilevel.horizons
    sheet = Sheet(params, "bilevel", params.bilevel, params.seeds)
    root = column(T**-0.5 for T in horizons)
    beta, eta_x, eta_y = 1 - (4 * root).clamp(max=1), method.eta * root, 6 * root
    H_mm = with_eigenvalues(torch.linspace(0.2, 1, D_Y, dtype=torch.float64), seed=1)
    base = standard(D_X, 0.01, 0.3, start=1.0)
    problem = BilevelQuadratic(base, H_mm, unit_norm(D_Y, D_X, seed=2), normal_vector(D_Y, seed=3))
    noise_g, noise_f, noise_x, noise_h = (
        Noise(params.seeds, i, coin(sigma, d))
        for i, (sigma, d) in enumerate(
            (
                (SIGMA, D_Y),
                (SIGMA, D_Y),
                (SIGMA, D_X),
                (HESSIAN_NOISE * max(1, method.K) ** 0.5, max(1, method.K)),
            )
        )
    )
    truncation = Noise(params.seeds, 4, choices(max(1, method.K), 1))
    stepper = SMB(Recursion(method.member, 0.99, 1.0))
    probe = GradientProbe(marks_of(horizons))
    x = problem.x0.expand(len(horizons), len(params.seeds), -1)
    y = torch.zeros(*x.shape[:2], D_Y, dtype=torch.float64)
    for t in range(horizons[-1]):
        exact, best, old_y = problem.grad(x), problem.best_y(x), y
        shift_SK = noise_h.at(t)
        h = neumann_inverse_vector(
            lambda k, u, s=shift_SK: u @ problem.H + s[:, k - 1, None] * u,  # type: ignore[misc]
            problem.upper_grad_y(y) + noise_f.at(t),
            method.K,
            C,
            method.mode,
            truncation.at(t)[:, 0],
        )
        hypergradient = problem.hypergradient(x, h) + noise_x.at(t)
        x, y = stepper.step(
            x, y, hypergradient, problem.lower_grad(x, y) + noise_g.at(t), eta_x, eta_y, beta
        )  # fmt: skip
        probe.see(grad_sq=exact.square().sum(-1), lower_sq=(old_y - best).square().sum(-1))
    for r, T in enumerate(horizons):
        sheet.add("T6", name, f"T={T}", "avg_grad_sq", probe.mean("grad_sq", T)[r], "", QUADRATIC)
        sheet.add("T6", name, f"T={T}", "tail_grad_sq", probe.tail("grad_sq", T)[r], "", QUADRATIC)
        sheet.add("T6", name, f"T={T}", "avg_lower_sq", probe.mean("lower_sq", T)[r], "", QUADRATIC)
    last = {t: values_RS[-1] for t, values_RS in probe.now_at["grad_sq"].items()}
    sheet.curve(name, f"T={horizons[-1]}", "grad_sq", last)
    return sheet


def cleaning(job: str, params: AdamParams, prepared: Path) -> Sheet:
    """Learn the weights of noisy training samples, or (the control) leave them equal."""
    seeds, T = params.bilevel.cleaning_seeds, params.bilevel.cleaning_steps
    sheet = Sheet(params, "bilevel", params.bilevel, seeds)
    images = load_file(prepared / "digits.safetensors")
    clean_N = images["train_y"][:TRAIN]
    wrong_SN, labels_SN = wrong_labels(clean_N, seeds)
    held_out = slice(TRAIN, TRAIN + VALIDATION)
    problem = HyperCleaning(
        images["train_x"][:TRAIN], labels_SN, images["train_x"][held_out], images["train_y"][held_out]
    )
    batches = [Noise(seeds, 1 + i, choices(TRAIN, CLEANING_BATCH)) for i in range(3)]
    validation = Noise(seeds, 0, choices(VALIDATION, CLEANING_BATCH))
    hessians = Noise(seeds, 4, choices(TRAIN, CLEANING_BATCH * CLEANING_TERMS))
    stepper = SMB(Recursion("adam", 0.99, CLEANING_G0))
    eta_x = CLEANING_ETA_X if job == "cleaning" else 0.0
    x = torch.zeros(len(seeds), TRAIN, dtype=torch.float64)
    y = torch.zeros(len(seeds), problem.x.shape[1], CLASSES, dtype=torch.float64)
    for t in range(T):
        samples_SKB = hessians.at(t).unflatten(1, (CLEANING_TERMS, CLEANING_BATCH))
        h = neumann_inverse_vector(
            lambda k, u, x=x, y=y, rows=samples_SKB: problem.hvp(x, y, rows[:, k - 1], u),  # type: ignore[misc]
            problem.validation_grad(y, validation.at(t)),
            CLEANING_TERMS,
            CLEANING_C,
        )
        hypergradient = problem.hypergradient(x, y, batches[0].at(t), h)
        lower = problem.lower_grad(x, y, batches[1].at(t))
        x, y = stepper.step(x, y, hypergradient, lower, eta_x, CLEANING_ETA_Y, CLEANING_BETA)
    test_x = torch.cat([images["test_x"], torch.ones(len(images["test_x"]), 1, dtype=torch.float64)], dim=1)
    measured: dict[str, Tensor] = {
        "validation_loss": problem.validation_loss(y),
        "accuracy": 100 * ((test_x @ y).argmax(-1) == images["test_y"]).double().mean(-1),
    }
    if job == "cleaning":
        measured["weights_auc"] = torch.stack([auc(x[s], ~wrong_SN[s]) for s in range(len(seeds))])
    for metric, values_S in measured.items():
        sheet.add("T6", job, f"T={T}", metric, values_S, "%" if metric == "accuracy" else "", CLEANING)
    return sheet


def wrong_labels(clean_N: Tensor, seeds: list[int]) -> tuple[Tensor, Tensor]:
    """Per seed, which labels are wrong [S, N] and the labels [S, N]; a wrong one is uniform over the other classes."""
    wrong, labels = [], []
    for seed in seeds:
        generator = Generator().manual_seed(seed)
        wrong_N = torch.rand(len(clean_N), generator=generator) < WRONG
        shift_N = torch.randint(1, CLASSES, clean_N.shape, generator=generator)
        wrong.append(wrong_N)
        labels.append(torch.where(wrong_N, (clean_N + shift_N) % CLASSES, clean_N))
    return torch.stack(wrong), torch.stack(labels)


if __name__ == "__main__":
    run(main)
