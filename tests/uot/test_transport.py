"""The transport solver: against POT where that is right, below its objective where not, and by its laws."""

import math
import warnings
from collections.abc import Callable

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.uot.method.transport import (
    Reference,
    Transport,
    class_cost,
    generalised_kl,
    transport_objective,
    transport_plan,
    unbalanced_sinkhorn,
)

OFFICIAL_TAU = (1.0, 100.0)
Problem = tuple[Tensor, Tensor, Tensor, float, tuple[float, float]]


def ones(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.float64)


def problem(scale: float, tau: tuple[float, float] = OFFICIAL_TAU, seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    source, target = torch.randn(30, 16, generator=generator), torch.randn(8, 16, generator=generator)
    return class_cost(source, target, scale=scale), ones(30), ones(8), 1.0, tau


def by_pot(case: Problem, method: str, tol: float = 1e-13) -> Tensor:
    cost, a, b, eps, tau = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its numerical errors are the point
        plan = ot.unbalanced.sinkhorn_unbalanced(
            a.numpy(), b.numpy(), cost.numpy(), eps, tau, method, "entropy", numItermax=5000, stopThr=tol
        )
    return torch.from_numpy(plan)


@pytest.mark.parametrize("tau", [OFFICIAL_TAU, (1.0, 1.0), (0.2, 5.0)])
def test_equals_pot_where_the_plain_kernel_is_safe(tau: tuple[float, float]) -> None:
    case = problem(0.1, tau)
    assert torch.allclose(unbalanced_sinkhorn(*case, tol=1e-14).plan, by_pot(case, "sinkhorn"), atol=1e-10)


def test_product_reference_equals_pot() -> None:
    cost, a, b, eps, _ = problem(0.1)
    a, b = a / len(a), b / len(b)
    plan = ot.unbalanced.sinkhorn_unbalanced(
        a.numpy(), b.numpy(), cost.numpy(), eps, OFFICIAL_TAU, reg_type="kl", numItermax=5000, stopThr=1e-13
    )
    ours = unbalanced_sinkhorn(cost, a, b, eps, OFFICIAL_TAU, "product", tol=1e-14).plan
    assert torch.allclose(ours, torch.from_numpy(plan), atol=1e-10)


def test_translation_invariant_pot_is_wrong_for_unlike_tau() -> None:
    case = problem(0.1)
    ours = transport_plan(*case, tol=1e-12)
    assert ours.solver == "log-domain"
    wrong = by_pot(case, "sinkhorn_translation_invariant")
    assert transport_objective(ours.plan, *case) < transport_objective(wrong, *case) - 1


@pytest.mark.parametrize("method", ["sinkhorn", "sinkhorn_stabilized"])
def test_below_pot_where_its_kernel_underflows(method: str) -> None:
    case = problem(1e-4)
    ours = unbalanced_sinkhorn(*case, tol=1e-12)
    assert ours.log_plan.isfinite().all()
    assert ours.log_importance.isfinite().all()
    assert transport_objective(ours.plan, *case) <= transport_objective(by_pot(case, method), *case) + 1e-9
    assert by_pot(case, "sinkhorn").sum() == 0  # everything has underflown


def test_pot_solves_what_it_is_right_for() -> None:
    symmetric = problem(0.1, (2.0, 2.0))
    solved = transport_plan(*symmetric, max_iter=5000, tol=1e-14)
    assert solved.solver == "POT"
    assert torch.allclose(solved.plan, unbalanced_sinkhorn(*symmetric, tol=1e-14).plan, atol=1e-9)
    assert transport_plan(*problem(1e-4, (2.0, 2.0))).solver == "log-domain"


@pytest.mark.parametrize("solve", [transport_plan, unbalanced_sinkhorn])
def test_infinite_tau_keeps_the_masses(solve: Callable[..., Transport]) -> None:
    cost, a, b, eps, _ = problem(0.1)
    tau = (math.inf, math.inf)
    plan = solve(cost, a / 30, b / 8, eps, tau, max_iter=5000, tol=1e-12).plan
    assert torch.allclose(plan.sum(1), a / 30, atol=1e-8)
    assert torch.allclose(plan.sum(0), b / 8, atol=1e-8)


def test_importance_is_a_root_of_kernel_similarity_when_tau_is_eps() -> None:
    cost, a, b, eps, tau = problem(0.1)
    solved = unbalanced_sinkhorn(cost, a, b, eps, tau, tol=1e-14)
    u, v = np.ones(len(a)), np.ones(len(b))
    kernel = np.exp(-cost.numpy() / eps)
    for _ in range(300):
        u = (a.numpy() / (kernel @ v)) ** (tau[0] / (tau[0] + eps))
        v = (b.numpy() / (kernel.T @ u)) ** (tau[1] / (tau[1] + eps))
    expected = np.sqrt(a.numpy() * (kernel @ v))  # card, "Step 4"
    assert solved.log_importance.exp().numpy() == pytest.approx(expected, rel=1e-9)


problems = st.builds(
    lambda seed, scale, s, t, tau_s, tau_t, eps: (seed, scale, s, t, tau_s, tau_t, eps),
    st.integers(0, 10_000), st.floats(0.02, 2), st.integers(1, 9), st.integers(1, 6), st.floats(0.05, 20),
    st.floats(0.05, 200), st.floats(0.2, 3),
)  # fmt: skip


def drawn(values: tuple[int, float, int, int, float, float, float]) -> Problem:
    seed, scale, s, t, tau_s, tau_t, eps = values
    generator = torch.Generator().manual_seed(seed)
    cost = class_cost(
        torch.randn(s, 5, generator=generator), torch.randn(t, 5, generator=generator), scale=scale
    )
    a, b = (0.2 + torch.rand(n, generator=generator, dtype=torch.float64) for n in (s, t))
    return cost, a, b, eps, (tau_s, tau_t)


@settings(max_examples=40, deadline=None)
@given(problems, st.sampled_from(["ones", "product"]), st.integers(0, 100))
def test_no_other_plan_is_cheaper(
    values: tuple[int, float, int, int, float, float, float], reference: Reference, other: int
) -> None:
    case = drawn(values)
    solved = unbalanced_sinkhorn(*case, reference, max_iter=5000, tol=1e-13)
    noise = torch.randn(case[0].shape, generator=torch.Generator().manual_seed(other), dtype=torch.float64)
    best = transport_objective(solved.plan, *case, reference)
    for size in (1e-3, 0.1, 1.0):
        changed = transport_objective(solved.plan * (size * noise).exp(), *case, reference)
        assert changed >= best - 1e-9 * max(1.0, abs(best))


@settings(max_examples=30, deadline=None)
@given(problems)
def test_order_of_classes_does_not_matter(values: tuple[int, float, int, int, float, float, float]) -> None:
    cost, a, b, eps, tau = drawn(values)
    rows = torch.randperm(len(a), generator=torch.Generator().manual_seed(1))
    columns = torch.randperm(len(b), generator=torch.Generator().manual_seed(2))
    plan = unbalanced_sinkhorn(cost, a, b, eps, tau, tol=1e-12).plan
    moved = unbalanced_sinkhorn(cost[rows][:, columns], a[rows], b[columns], eps, tau, tol=1e-12).plan
    assert torch.allclose(plan[rows][:, columns], moved, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(problems)
def test_loop_contracts_at_the_stated_rate(values: tuple[int, float, int, int, float, float, float]) -> None:
    cost, a, b, eps, tau = drawn(values)
    rate = tau[0] / (tau[0] + eps) * tau[1] / (tau[1] + eps)
    limit = unbalanced_sinkhorn(cost, a, b, eps, tau, max_iter=20_000, tol=1e-14).log_plan
    gaps = [
        float((unbalanced_sinkhorn(cost, a, b, eps, tau, max_iter=n, tol=0.0).log_plan - limit).abs().max())
        for n in (3, 9)
    ]
    assert gaps[1] <= 2 * gaps[0] * rate**6 / (1 - rate) + 1e-8


@given(st.integers(0, 1000), st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_cosine_cost_ignores_lengths(seed: int, factor: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    source, target = torch.randn(5, 4, generator=generator), torch.randn(3, 4, generator=generator)
    cost = class_cost(source, target)
    assert torch.allclose(class_cost(factor * source, target), cost, atol=1e-4)
    assert ((cost > -1e-9) & (cost < 20 + 1e-9)).all()


def test_euclidean_cost_is_the_distance_of_raw_rows() -> None:
    cost = class_cost(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([[3.0, 4.0]]), "euclidean", 0.5)
    assert cost.flatten().tolist() == pytest.approx([10.0, 8.0])


def test_kl_is_zero_only_for_equals() -> None:
    p = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
    assert float(generalised_kl(p, p + 1e-300)) == pytest.approx(0)
    assert float(generalised_kl(p, torch.ones(3, dtype=torch.float64))) > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [({"eps": 0.0}, "positive"), ({"tau": (1.0, 0.0)}, "positive"), ({"a_S": torch.zeros(2)}, "positive"),
     ({"b_T": torch.ones(4)}, "masses are for")],
)  # fmt: skip
def test_wrong_problems_are_refused(change: dict[str, object], message: str) -> None:
    case: dict[str, object] = {
        "cost_ST": torch.ones(2, 3), "a_S": torch.ones(2), "b_T": torch.ones(3), "eps": 1.0,
        "tau": (1.0, 1.0),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        unbalanced_sinkhorn(**{**case, **change})  # type: ignore[arg-type]


def test_means_without_direction_are_refused() -> None:
    with pytest.raises(ValueError, match="target class 1"):
        class_cost(torch.ones(2, 3), torch.tensor([[1.0, 0, 0], [0, 0, 0]]))
    with pytest.raises(ValueError, match="3 features"):
        class_cost(torch.ones(2, 3), torch.ones(2, 4))


def test_numpy_values_are_those_of_the_direct_loop() -> None:
    cost, a, b, _, _ = problem(0.1)
    kernel = np.exp(-cost.numpy())
    u, v = np.ones(30) / 30, np.ones(8) / 8
    for _ in range(7):
        u = (a.numpy() / (kernel @ v)) ** (1 / 2)
        v = (b.numpy() / (kernel.T @ u)) ** (100 / 101)
    plan = u[:, None] * kernel * v
    ours = unbalanced_sinkhorn(cost, a, b, 1.0, OFFICIAL_TAU, max_iter=7, tol=0.0)
    assert ours.iterations == 7
    assert np.allclose(ours.plan.numpy(), plan, atol=1e-12)
