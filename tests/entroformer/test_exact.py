"""Exact sums: the same bits in any order, and nearly the numbers of the float model."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stages.entroformer.cells import METHODS
from stages.entroformer.method.attention import topk_softmax
from stages.entroformer.method.codec import LatentCoder
from stages.entroformer.method.exact import (
    EXP_STEPS,
    ROW_SUM,
    ExactConv,
    ExactLayerNorm,
    ExactLinear,
    ExactTransposedConv,
    choose,
    exp_table,
    settle,
)
from tests.entroformer.test_files import codec_of


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 2000), st.integers(0, 10_000), st.floats(-20, 20))
def test_a_linear_layer_is_the_same_in_any_order_of_its_inputs(inputs: int, seed: int, power: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, x = (torch.randn(5, inputs, generator=generator) for _ in range(2))
    x = x * 2.0**power
    layer, order = ExactLinear(weight, None), torch.randperm(inputs, generator=generator)
    shuffled = ExactLinear(weight[:, order], None)
    out = layer(x)
    assert torch.equal(shuffled(x[:, order]), out)
    assert torch.equal(torch.cat([layer(row) for row in x.split(1)]), out)
    largest = layer.weight_MK.abs().sum(1).max() * layer.levels
    assert largest < 2 ** (24 if layer.dtype == torch.float32 else 53)  # no order of summation can round
    norms = x.double().norm(dim=1)[:, None] * weight.double().norm(dim=1)
    assert ((out.double() - x.double() @ weight.double().T).abs() < 0.03 * norms).all()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 5, 2, 2), (2, 4, 9, 12)),
        (nn.Conv2d(4, 6, 1), (1, 4, 3, 5)),
        (nn.ConvTranspose2d(4, 6, 5, 2, 2, output_padding=1), (2, 4, 5, 6)),
        (nn.LayerNorm(32), (2, 7, 32)),
    ],
)
def test_layers_are_close_to_what_they_replace(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        parameter.data += torch.randn_like(parameter)
    kinds = {nn.Conv2d: ExactConv, nn.ConvTranspose2d: ExactTransposedConv, nn.LayerNorm: ExactLayerNorm}
    x = torch.randn(shape)
    with torch.no_grad():
        expected, ours = layer(x), kinds[type(layer)](layer)(x)
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() < 0.01 * expected.abs().max()


def integer_weights(scores: torch.Tensor, factor: torch.Tensor, topk: int) -> torch.Tensor:
    """`choose`, with a zero for every key that is not."""
    chosen = choose(scores, factor, topk)
    weights = torch.zeros_like(scores)
    weights[torch.from_numpy(chosen.row), torch.from_numpy(chosen.key)] = torch.from_numpy(
        chosen.weight
    ).float()
    return weights


def test_masked_keys_have_no_weight_even_where_all_scores_are_equal() -> None:
    scores = torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf]])
    for topk in (-1, 1, 3):  # a query of zeros: its factor is as small as it can be
        assert integer_weights(scores, torch.full((1, 1), 1e-34), topk).tolist() == [
            [16383.0, 16383.0, 0.0, 0.0]
        ]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 1000), st.floats(1e-3, 20))
def test_chosen_keys_are_those_of_a_full_sort(keys: int, topk: int, seed: int, factor: float) -> None:
    """Whatever the groups that rule keys out: the k nearest in steps, ties included, in a few values or in many."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(5, keys, generator=generator)
    if seed % 2:  # many ties
        scores = scores.round()
    factor_51 = torch.full((5, 1), factor)
    last = len(exp_table()) - 1
    steps = ((scores.amax(1, keepdim=True) - scores) * (factor_51 * EXP_STEPS)).round().clamp(max=last)
    threshold = steps.sort(1).values[:, min(topk, keys) - 1, None].clamp(max=last - 1)
    chosen = choose(scores, factor_51, topk)
    expected = (steps <= threshold).nonzero()
    assert torch.equal(torch.from_numpy(chosen.row), expected[:, 0])
    assert torch.equal(torch.from_numpy(chosen.key), expected[:, 1])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 1000))
def test_integer_attention_weights(keys: int, topk: int, seed: int) -> None:
    scores = torch.randn(3, keys, generator=torch.Generator().manual_seed(seed))
    weights = integer_weights(scores, torch.full((3, 1), 1.5), topk)
    assert torch.equal(weights, weights.round())
    assert (weights.sum(-1) <= ROW_SUM).all()
    # scores are compared in steps: a key less than one below the last of the k is level with it, and stays too
    scaled, step = 1.5 * scores, 1.0 / EXP_STEPS
    threshold = scaled.topk(min(topk, keys)).values[:, -1:]
    kept = scaled.masked_fill(weights == 0, float("inf"))
    assert (kept > threshold - 2 * step).all()
    level = ((scaled - threshold).abs() < 2 * step).sum(-1) > 1
    share = weights / weights.sum(-1, keepdim=True)
    assert ((share - topk_softmax(scaled, topk)).abs().amax(-1) < 2e-3)[~level].all()


def test_keys_level_at_the_threshold_all_stay() -> None:
    """The third key is a third of a step below the second: both are kept, by the encoder and the decoder alike."""
    scores = torch.tensor([[2.0, 1.0, 1.0 - 1 / (3 * EXP_STEPS), 0.0]])
    assert (integer_weights(scores, torch.ones(1, 1), 2) > 0).tolist() == [[True, True, True, False]]


def test_scales_do_not_depend_on_last_bits() -> None:
    x = torch.rand(1000, dtype=torch.float64) + 1e-3
    assert torch.equal(settle(x), settle(x * (1 + 1e-14)))
    assert (settle(x) >= x).all()
    assert (settle(x) < x * 1.003).all()


@pytest.mark.parametrize("name", ["ent-serial", "ent-two-pass", "cnn-serial", "cnn-two-pass"])
def test_an_exact_entropy_model_predicts_as_the_float_one(name: str) -> None:
    # dense attention: with top-k a key at the threshold may be swapped for its neighbour, which is no rounding error
    codec = codec_of(replace(METHODS[name], dense=True))  # type: ignore[index]
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(-4, 5, (1, 5, 8, 8), generator=generator).float()
    z = torch.randint(-3, 4, (1, 3, 2, 2), generator=generator).float()
    exact = LatentCoder(codec.entropy).entropy
    with torch.no_grad():
        ours, expected = exact.distribution(y, z), codec.entropy.distribution(y, z)
        if codec.spec.serial:  # one position after another has the same bits as all at once
            whole, decoding = exact.context(y), exact.context.decoding(8, 8)  # type: ignore[misc,union-attr,operator]
            for position in range(64):
                feature = decoding.feature(y, *divmod(position, 8))
                assert torch.equal(feature, whole[:, :, position // 8, position % 8])
    assert (ours - expected).square().mean().sqrt() < 0.02 * expected.std()
