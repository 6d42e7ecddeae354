"""Column subset selection and projection residuals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.chex.method.column_subset import (
    Criterion,
    leverage_scores,
    reconstruction_residual,
    select_channels,
    svd_bound,
)
from stages.chex.method.regrow import projection_residual

CRITERIA: tuple[Criterion, ...] = ("css", "css_greedy", "l1", "geometric_median", "bn", "random")


@st.composite
def weights(draw) -> torch.Tensor:
    """Matrices of any shape and rank, with zero and repeated channels."""
    C, d = draw(st.integers(1, 12)), draw(st.integers(1, 14))
    rank = draw(st.integers(1, min(C, d)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    weight = torch.randn(C, rank, generator=generator) @ torch.randn(rank, d, generator=generator)
    if draw(st.booleans()):
        weight[draw(st.integers(0, C - 1))] = 0
    if draw(st.booleans()):
        weight[0] = weight[-1]
    return weight


@settings(max_examples=60, deadline=None, derandomize=True)
@given(weights(), st.data())
def test_leverage_scores_sum_to_k(weight: torch.Tensor, data) -> None:
    k = data.draw(st.integers(1, len(weight)))
    squared = leverage_scores(weight, k).square()
    clear_rank = int(torch.linalg.matrix_rank(weight.double(), rtol=1e-5))  # float32 noise is no rank
    assert min(k, clear_rank) - 1e-6 <= float(squared.sum()) <= k + 1e-6
    assert float(squared.max()) <= 1 + 1e-6


@settings(max_examples=60, deadline=None, derandomize=True)
@given(weights(), st.data())
def test_selection_is_between_svd_bound_and_everything(weight: torch.Tensor, data) -> None:
    n = data.draw(st.integers(1, len(weight)))
    generator = torch.Generator().manual_seed(0)
    for criterion in CRITERIA:
        keep = select_channels(weight, n, criterion, scale=weight.norm(dim=1), generator=generator)
        assert keep.tolist() == sorted(set(keep.tolist()))
        assert len(keep) == n
        residual = reconstruction_residual(weight, keep)
        total = float(weight.double().square().sum())
        assert svd_bound(weight, n) - 1e-9 * (total + 1) <= residual <= total * (1 + 1e-9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(weights(), st.data())
def test_projection_residual_is_the_distance_to_the_span(weight: torch.Tensor, data) -> None:
    n = data.draw(st.integers(0, len(weight)))
    order = torch.randperm(len(weight), generator=torch.Generator().manual_seed(n))
    keep, candidates = order[:n], order[n:]
    eps = projection_residual(weight, keep, candidates)
    assert bool((eps >= 0).all())
    total = float(weight.double().square().sum())
    assert float(eps.square().sum()) == pytest.approx(
        reconstruction_residual(weight, keep) if n else total, abs=1e-6 * (total + 1)
    )


def test_residual_is_zero_where_kept_channels_span_everything() -> None:
    weight = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    eps = projection_residual(weight, torch.arange(20), torch.arange(20, 40))
    assert float(eps.max()) < 1e-5


def test_repeated_channels_explain_each_other() -> None:
    weight = torch.randn(6, 30, generator=torch.Generator().manual_seed(0))
    weight[5] = weight[2]
    assert float(projection_residual(weight, torch.tensor([1, 2]), torch.tensor([5]))[0]) == 0
    assert float(projection_residual(weight, torch.tensor([2, 5]), torch.tensor([0]))[0]) > 1


@pytest.mark.parametrize("criterion", ["css", "css_greedy", "l1", "geometric_median"])
def test_ties_go_to_the_lower_index_and_zero_channels_last(criterion: Criterion) -> None:
    weight = torch.eye(6, 8)
    weight[1] = 0
    assert select_channels(weight, 3, criterion).tolist() == [0, 2, 3]
    assert select_channels(weight, 6, criterion).tolist() == [0, 1, 2, 3, 4, 5]
    assert 1 not in select_channels(weight, 5, criterion).tolist()


def test_leverage_is_the_svd_s_in_tall_and_wide_layers() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((10, 4, 3, 3), (20, 9, 1, 1)):
        weight = torch.randn(*shape, generator=generator)
        V = torch.linalg.svd(weight.flatten(1).double().T, full_matrices=False).Vh.T
        torch.testing.assert_close(leverage_scores(weight, 5), V[:, :5].norm(dim=1), atol=1e-9, rtol=0)


def test_greedy_selection_beats_leverage_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    ours: dict[Criterion, float] = {"css": 0.0, "css_greedy": 0.0}
    for _ in range(10):
        weight = torch.randn(24, 40, generator=generator) * torch.rand(24, 1, generator=generator)
        for criterion in ours:
            ours[criterion] += reconstruction_residual(weight, select_channels(weight, 8, criterion))
    assert ours["css_greedy"] < ours["css"]


def test_bn_needs_scales() -> None:
    with pytest.raises(ValueError, match="pass scale"):
        select_channels(torch.ones(3, 3), 1, "bn")
