"""How many channels: allocation, regrow counts, budgets, sampling, multiply-accumulates."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stages.chex.method.allocation import allocate_channels, sparsity_for_macs, uniform_channels
from stages.chex.method.channel_groups import find_channel_groups
from stages.chex.method.flops import MacModel, count_macs
from stages.chex.method.losses import mixup
from stages.chex.method.regrow import regrow_counts, regrow_factor, sample_regrow
from stages.chex.method.resnet import build

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(SIZES, st.floats(0.01, 0.99), st.integers(1, 3), st.integers(0, 1000))
def test_global_allocation_total_is_exact(sizes: list[int], sparsity: float, least: int, seed: int) -> None:
    total = sum(sizes)
    scales = list((torch.randperm(total, generator=torch.Generator().manual_seed(seed)) + 1.0).split(sizes))
    counts = allocate_channels(scales, sparsity, least)
    lower = [min(least, size) for size in sizes]
    assert all(low <= n <= size for low, n, size in zip(lower, counts, sizes, strict=True))
    assert sum(counts) == max(total - int(total * sparsity + 1e-9) - 1, sum(lower))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(SIZES, st.floats(0, 1), st.data())
def test_uniform_regrow_total_is_exact(sizes: list[int], delta: float, data) -> None:
    kept = [data.draw(st.integers(0, size)) for size in sizes]
    counts = regrow_counts(kept, sizes, delta)
    room = [size - n for size, n in zip(sizes, kept, strict=True)]
    assert all(0 <= n <= r for n, r in zip(counts, room, strict=True))
    assert sum(counts) == min(round(delta * sum(sizes)), sum(room))
    if all(r >= delta * size + 1 for r, size in zip(room, sizes, strict=True)):
        assert all(abs(n - delta * size) < 1 for n, size in zip(counts, sizes, strict=True))


def test_scales_decide_and_pruned_ones_go_first() -> None:
    scales = [torch.tensor([0.0, 0.9, -0.8, 0.7]), torch.tensor([0.1, 0.2, 0.0, 0.0])]
    # the second layer keeps its best although it is below the threshold 0.7
    assert allocate_channels(scales, 0.5) == [2, 1]
    assert allocate_channels(scales, 0.0) == [4, 4]


def test_uniform_counts_do_not_lose_a_channel_to_rounding() -> None:
    assert uniform_channels([10, 64], 0.7 - 0.3) == [6, 38]
    assert uniform_channels([10, 1], 0.3 + 0.6) == [1, 1]


def test_regrow_factor_ends() -> None:
    assert regrow_factor(0, 9, 0.3) == 0.3
    assert regrow_factor(9, 9, 0.3) == 0
    assert regrow_factor(3, 9, 0.3, "linear") == pytest.approx(0.2)
    assert regrow_factor(9, 9, 0.3, "constant") == 0.3


def test_sampling_follows_the_probabilities_without_replacement() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.tensor([0.7, 0.2, 0.1, 0.0])
    first = torch.zeros(4)
    for _ in range(4000):
        first[sample_regrow(p, 1, generator)] += 1
    torch.testing.assert_close(first / 4000, p, atol=0.03, rtol=0)
    assert sample_regrow(p, 3, generator).tolist() == [0, 1, 2]
    assert sample_regrow(torch.tensor([0.0, 1.0, 0.0]), 2, generator).tolist() == [0, 1]


@pytest.mark.parametrize("fraction", [0.3, 0.6])
def test_budget_is_met_and_not_by_more_than_needed(fraction: float) -> None:
    torch.manual_seed(0)
    model, x = build("quick", 8), torch.zeros(1, 3, 12, 12)
    groups, _ = find_channel_groups(model, x)
    macs = MacModel(model, groups, x)
    sizes = [g.units for g in groups]
    scales = [torch.rand(size) for size in sizes]
    budget = fraction * macs(sizes)
    for counts_at in (lambda s: allocate_channels(scales, s), lambda s: uniform_channels(sizes, s)):
        sparsity = sparsity_for_macs(counts_at, macs, budget)
        assert 0.9 * budget < macs(counts_at(sparsity)) <= budget
        assert macs(counts_at(sparsity - 1e-5)) > budget
    with pytest.raises(ValueError, match="out of reach"):
        sparsity_for_macs(lambda s: uniform_channels(sizes, s), macs, 10)


@pytest.mark.parametrize(("name", "size"), [("resnet50", 224), ("resnet20", 32), ("quick", 12)])
def test_macs_against_torch_s_counter(name: str, size: int) -> None:
    with torch.device("meta"):
        model, x = build(name, 10), torch.zeros(1, 3, size, size)
    with FlopCounterMode(display=False) as counter:
        model(x)
    bias = 10  # torch counts no biases
    assert count_macs(model, x) == counter.get_total_flops() // 2 + bias


def test_resnet50_is_the_paper_s() -> None:
    with torch.device("meta"):
        model, x = build("resnet50", 1000), torch.zeros(2, 3, 224, 224)
    assert count_macs(model, x) == 4_089_185_256
    groups, dense = find_channel_groups(model, x)
    assert not dense
    assert (len(groups), sum(g.units for g in groups)) == (36, 11_392)
    assert sum(g.units for g in groups if g.kind == "shortcut") == 3_840


def test_quick_net_is_the_card_s() -> None:
    assert count_macs(build("quick", 8), torch.zeros(1, 3, 12, 12)) == pytest.approx(0.427e6, rel=1e-3)


def test_convolution_bias_counts_once_per_output() -> None:
    assert count_macs(nn.Conv2d(3, 4, 3), torch.zeros(2, 3, 6, 6)) == 4 * 4 * (3 * 4 * 9 + 4)


def test_mixup_blends_images_and_labels_alike() -> None:
    images, labels = torch.eye(4).reshape(4, 4, 1, 1), torch.arange(4)
    mixed, soft = mixup(images, labels, 4, 0.2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixed.flatten(1), soft)
    torch.testing.assert_close(soft.sum(1), torch.ones(4))
