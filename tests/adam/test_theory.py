"""The theorem and its parts: unit tests of the maths, laws as property tests, and a violation that must be seen."""

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from stages.adam.bounds import bound_rows
from stages.adam.lab import column, descend, marks_of
from stages.adam.method.bilevel import neumann_inverse_vector
from stages.adam.method.compositional import CompositionalMA
from stages.adam.method.minmax import PDSM
from stages.adam.method.noise import Noise, choices, coin, gauss, skewed
from stages.adam.method.probe import GradientProbe, log_spaced
from stages.adam.method.problems.auc import AUCMaximisation, auc, aucm, best_alpha
from stages.adam.method.problems.digits_mlp import DigitsMLP
from stages.adam.method.problems.hyper_cleaning import RIDGE, HyperCleaning
from stages.adam.method.problems.matrices import unit_norm, with_eigenvalues
from stages.adam.method.problems.quadratic_welsch import standard
from stages.adam.method.problems.reddi import ReddiStochastic
from stages.adam.method.rates import fit_loglog
from stages.adam.method.recursion import Recursion
from stages.adam.method.theorem import step_limit, steps_to, theorem_bound

positive = st.floats(0.05, 20)


@settings(deadline=None)
@given(
    L=positive,
    sigma2=positive,
    delta=positive,
    c_l=st.floats(0.05, 1),
    ratio=st.floats(1, 10),
    eps=st.floats(0.05, 1),
)
def test_chosen_gamma_eta_and_T_reach_epsilon(
    L: float, sigma2: float, delta: float, c_l: float, ratio: float, eps: float
) -> None:
    gamma, eta, T = steps_to(eps, L, sigma2, delta, c_l, c_l * ratio)
    bound = theorem_bound(L, sigma2, delta, eta, gamma, c_l, c_l * ratio, T)
    assert bound.ok
    if gamma < 1:
        assert bound.B1 / eps**2 <= 1 + 1e-9


def test_complexity_is_epsilon_to_the_minus_four() -> None:
    steps = [steps_to(eps, 1.0, 1.0, 1.0, 0.5, 1.0)[2] for eps in (0.1, 0.05, 0.025)]
    for few, many in pairwise(steps):
        assert many / few == pytest.approx(16, rel=1e-3)


@settings(deadline=None)
@given(gamma=st.floats(0.01, 1), c_l=st.floats(0.01, 1), factor=st.floats(1.001, 5))
def test_step_condition_can_fail(gamma: float, c_l: float, factor: float) -> None:
    limit = step_limit(2.0, gamma, c_l, 1.0)
    assert theorem_bound(2.0, 1.0, 1.0, limit, gamma, c_l, 1.0, 100).ok
    assert not theorem_bound(2.0, 1.0, 1.0, limit * factor, gamma, c_l, 1.0, 100).ok


def measured(shift: float) -> list[dict[str, object]]:
    """Rows of T1 of heavy ball at T = 1024, whose oracle is off by `shift` in every coordinate, and the bounds for them."""
    problem, T = standard(20), 1024
    gamma = 4 / T**0.5
    draw = coin(1.0, 20)
    noise = Noise([0, 1, 2], 0, lambda generator, n: draw(generator, n) + shift)
    probe = descend(
        problem, Recursion("sgdm"), noise, column([0.16 * gamma]), column([1 - gamma]), 1, marks_of([T])
    )
    values = {
        "avg_grad_sq": probe.mean("grad_sq", T), "avg_D": probe.mean("error_sq", T), "D_0": probe.now_at["error_sq"][1],
        "s_min": probe.range_at["s"][T][0], "s_max": probe.range_at["s"][T][1], "g_max": probe.range_at["g"][T][1],
    }  # fmt: skip
    rows = [
        {
            "method": "sgdm",
            "setting": f"T={T}",
            "metric": metric,
            "seed": seed,
            "value": float(value_RS[0, seed]),
        }
        for metric, value_RS in values.items()
        for seed in range(3)
    ]
    return bound_rows(pd.DataFrame(rows), problem, lambda _: (gamma, 0.16 * gamma))


@pytest.mark.parametrize(("shift", "violated"), [(0.0, False), (3.0, True)])
def test_planted_bound_violation_is_seen(shift: float, violated: bool) -> None:
    """The theorem needs unbiased gradients; with a biased oracle the same check must report a violation."""
    rows = pd.DataFrame(measured(shift))
    assert rows.loc[rows["metric"] == "step_margin", "value"].min() >= 1  # the step size is not to blame
    ratio = rows.loc[rows["metric"] == "B1_ratio", "value"].mean()
    assert (ratio > 1) == violated


def test_frozen_x_has_the_exact_stationary_error() -> None:
    """gamma/(2-gamma) sigma², within three standard errors (card, E3)."""
    gammas, T, seeds = [0.3, 0.1, 0.03], 4000, list(range(12))
    gamma = column(gammas)
    noise = Noise(seeds, 0, coin(1.0, 6))
    probe = descend(standard(6), Recursion("sgdm"), noise, 0.0, 1 - gamma, 3, marks_of([T]))
    for r, value in enumerate(gammas):
        tail_S = probe.tail("error_sq", T)[r]
        error = float(tail_S.std()) / len(seeds) ** 0.5
        assert abs(float(tail_S.mean()) - value / (2 - value)) <= 3 * error


@given(gamma=st.floats(0.01, 1), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_variance_recursion(gamma: float, seed: int) -> None:
    """One step of the moving average obeys the recursion, in expectation over the two sides of a coin."""
    generator = torch.Generator().manual_seed(seed)
    z, old, new, noise = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    after = sum(((1 - gamma) * z + gamma * (new + side * noise) - new).square().sum() / 2 for side in (-1, 1))
    bound = (1 - gamma) * (z - old).square().sum() + 2 * gamma**2 * noise.square().sum()
    bound = bound + (new - old).square().sum() / gamma  # h is the identity: L = 1
    assert float(after) <= float(bound) * (1 + 1e-12)


@given(K=st.integers(0, 40), low=st.floats(0.05, 1))
@settings(max_examples=40, deadline=None)
def test_truncation_bias_of_the_neumann_sum(K: int, low: float) -> None:
    H = with_eigenvalues(torch.linspace(low, 1, 6, dtype=torch.float64))
    b = torch.arange(1.0, 7.0, dtype=torch.float64)
    exact = torch.linalg.solve(H, b)
    h = neumann_inverse_vector(lambda _, u: u @ H, b, K, C=1.0)
    assert float((h - exact).norm()) <= (1 - low) ** K / low * float(b.norm()) * (1 + 1e-9) + 1e-12


def test_random_truncation_has_the_mean_of_the_sum() -> None:
    H = with_eigenvalues(torch.linspace(0.3, 1, 4, dtype=torch.float64))
    b, K = torch.ones(4, dtype=torch.float64), 7
    every_p = torch.arange(K)
    draws = neumann_inverse_vector(lambda _, u: u @ H, b.expand(K, -1), K, 1.0, "random", every_p)
    torch.testing.assert_close(draws.mean(0), neumann_inverse_vector(lambda _, u: u @ H, b, K, 1.0))
    with pytest.raises(ValueError, match="truncations"):
        neumann_inverse_vector(lambda _, u: u @ H, b, K, 1.0, "random")


def test_noise_belongs_to_seed_and_step() -> None:
    together, alone = Noise([3, 7], 0, coin(1.0, 4)), Noise([7], 0, coin(1.0, 4))
    for t in (0, 255, 256, 10_000, 3):
        assert torch.equal(together.at(t)[1], alone.at(t)[0])
    assert not torch.equal(together.at(5), Noise([3, 7], 1, coin(1.0, 4)).at(5))


@pytest.mark.parametrize("draw", [coin(2.0, 8), gauss(2.0, 8), skewed(2.0, 30.0, 8)])
def test_noise_has_mean_zero_and_the_stated_variance(draw: object) -> None:
    values = draw(torch.Generator().manual_seed(0), 40_000)  # type: ignore[operator]
    assert float(values.mean().abs()) < 0.01
    assert float(values.square().sum(-1).mean()) == pytest.approx(4.0, rel=0.05)


def test_reddi_mean_and_draws() -> None:
    problem = ReddiStochastic()
    assert problem.mean == pytest.approx(0.2)
    draws = problem.draw(4)(torch.Generator().manual_seed(0), 50_000)
    assert float(draws.mean()) == pytest.approx(problem.mean, abs=0.05)
    x = torch.zeros(3, 1)
    assert torch.equal(problem.grad(x), torch.full((3, 1), problem.mean))
    assert torch.equal(problem.value(x), x)


def test_fit_recovers_an_exponent() -> None:
    x = np.array([256, 512, 1024, 2048])
    noise = np.random.default_rng(0).lognormal(0, 0.05, (4, 16))
    fit = fit_loglog(x, 3 * x[:, None] ** -0.5 * noise)
    assert fit.low < -0.5 < fit.high
    assert fit.high - fit.low < 0.1


@given(T=st.integers(1, 5000))
@settings(deadline=None)
def test_log_spaced_times(T: int) -> None:
    times = log_spaced(T)
    assert times == sorted(set(times))
    assert (times[0], times[-1]) == (1, T)


@given(values=st.lists(st.floats(-5, 5), min_size=4, max_size=30))
@settings(max_examples=40, deadline=None)
def test_probe_means_and_tails(values: list[float]) -> None:
    T = len(values)
    probe = GradientProbe([T // 2, T])
    for value in values:
        probe.see(q=torch.tensor(value, dtype=torch.float64))
        probe.see_range(q=torch.tensor([value], dtype=torch.float64))
    assert float(probe.mean("q", T)) == pytest.approx(np.mean(values), abs=1e-12)
    assert float(probe.tail("q", T)) == pytest.approx(np.mean(values[T // 2 :]), abs=1e-12)
    assert [float(v) for v in probe.range_at["q"][T]] == [min(values), max(values)]


def test_dual_momentum_averages_the_dual_gradient() -> None:
    stepper = PDSM(dual_momentum=0.5, project=lambda y: y.clamp(max=1.6))
    x = y = torch.zeros(1)
    for expected in (1.0, 1.6):  # averages 1, then (1 + 0)/2, projected
        x, y = stepper.step(
            x, y, torch.zeros(1), torch.ones(1) if expected == 1 else torch.full((1,), 1.0), 0.1, 1.0, 0.0
        )
        assert float(y) == pytest.approx(expected)


def test_naive_compositional_keeps_no_average() -> None:
    stepper, x = CompositionalMA(Recursion("sgdm"), naive=True), torch.zeros(2)
    for inner in (torch.ones(2), torch.full((2,), 5.0)):
        x = stepper.step(x, inner, lambda z: z, 0.1, 0.9, 0.9)
        assert stepper.z is not None
        assert torch.equal(stepper.z, inner)


@given(st.lists(st.floats(0.01, 0.99), min_size=4, max_size=12), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_best_alpha_is_the_maximiser(scores: list[float], positives: int) -> None:
    h = torch.tensor(scores, dtype=torch.float64)
    positive = torch.arange(len(h)) < positives
    a, b = torch.tensor(0.6), torch.tensor(0.2)
    best = best_alpha(h, positive)
    top = aucm(h, positive, a, b, best)
    for shift in (-0.1, 0.1):
        assert float(aucm(h, positive, a, b, best + shift)) < float(top)


@given(st.lists(st.integers(0, 5), min_size=6, max_size=20), st.integers(1, 5))
@settings(deadline=None)
def test_auc_agrees_with_scikit_learn(scores: list[int], positives: int) -> None:
    positive = torch.arange(len(scores)) < positives
    value = auc(torch.tensor(scores, dtype=torch.float64), positive)
    assert float(value) == pytest.approx(roc_auc_score(positive.numpy(), scores))


def small_images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 10, (40,), generator=generator)


def test_digits_oracle_is_the_gradient_on_the_whole_set() -> None:
    problem = DigitsMLP(*small_images())
    w = problem.network.start([0, 1]).expand(3, -1, -1)
    rows = torch.arange(40).expand(2, -1)
    torch.testing.assert_close(problem.oracle(w, rows), problem.grad(w))
    direction = torch.ones(problem.network.count, dtype=torch.float64)
    slope = (problem.value(w + 1e-6 * direction) - problem.value(w - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close(slope, (problem.grad(w) * direction).sum(-1), rtol=1e-6, atol=1e-8)


def test_auc_oracle_is_the_gradient_on_the_whole_set() -> None:
    x, y = small_images()
    problem = AUCMaximisation(x, y < 3)
    w = torch.nn.functional.pad(problem.network.start([0, 1]), (0, 2), value=0.3)
    alpha = torch.tensor([0.1, 0.4], dtype=torch.float64)
    grad_w, grad_alpha = problem.oracle(w, alpha, torch.arange(40).expand(2, -1))
    torch.testing.assert_close(grad_w, problem.grad_x(w, alpha))
    torch.testing.assert_close(grad_alpha, 2 * (problem.best_alpha(w) - alpha))
    assert torch.equal(
        problem.cross_entropy_oracle(w, torch.arange(40).expand(2, -1))[:, -2:], torch.zeros(2, 2).double()
    )


def test_hyper_cleaning_derivatives_against_autograd() -> None:
    x_NI, y_N = small_images()
    problem = HyperCleaning(x_NI, y_N.expand(2, -1), x_NI[:10], y_N[:10])
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 40, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 9, 10, generator=generator, dtype=torch.float64, requires_grad=True)
    h = torch.randn(2, 9, 10, generator=generator, dtype=torch.float64)
    rows = torch.arange(40).expand(2, -1)
    entropy_SN = -((problem.x @ y).log_softmax(-1) * problem.y).sum(-1)
    lower = (x.sigmoid() * entropy_SN).mean(-1).sum() + RIDGE / 2 * y.square().sum()
    (grad_y,) = torch.autograd.grad(lower, y, create_graph=True)
    torch.testing.assert_close(problem.lower_grad(x.detach(), y.detach(), rows), grad_y.detach())
    hvp, cross = torch.autograd.grad((grad_y * h).sum(), (y, x), retain_graph=True)
    torch.testing.assert_close(problem.hvp(x.detach(), y.detach(), rows, h), hvp)
    torch.testing.assert_close(problem.hypergradient(x.detach(), y.detach(), rows, h), -cross)
    (upper,) = torch.autograd.grad(problem.validation_loss(y).sum(), y)
    torch.testing.assert_close(problem.validation_grad(y.detach(), torch.arange(10).expand(2, -1)), upper)


def test_matrices() -> None:
    assert float(torch.linalg.matrix_norm(unit_norm(4, 7), 2)) == pytest.approx(1.0)
    values = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.eigvalsh(with_eigenvalues(values)), values)
    assert choices(5, 3)(torch.Generator().manual_seed(0), 100).max() == 4
    problem = standard(6)
    assert problem.lam[0] - problem.alpha / 2 < 0  # non-convex
    assert problem.value(problem.x0) > problem.F_star
    assert math.isclose(float((problem.Q @ problem.x0).mean()), 3.0)
    assert torch.equal(problem.oracle(problem.x0, torch.ones(6)), problem.grad(problem.x0) + 1)
