"""Laws of the attention and of the context models."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stages.entroformer.method.attention import (
    AttentionSpec,
    SelfAttention,
    TransformerStack,
    diamond_bucket_index,
    full_layout,
    topk_softmax,
)
from stages.entroformer.method.context import (
    BidirectionalContext,
    CheckerboardConvContext,
    MaskedConvContext,
    SerialContext,
    checkerboard,
)

SPEC = AttentionSpec(dim=12, heads=2, dim_head=6, mlp_ratio=2, position_num=5, topk=3)
LATENTS = 3
GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 6))


def context(kind: str, position: str = "diamond") -> nn.Module:
    torch.manual_seed(0)
    spec = replace(SPEC, position=position)
    modules: dict[str, nn.Module] = {
        "serial": SerialContext(LATENTS, spec, 2),
        "masked-conv": MaskedConvContext(LATENTS, SPEC.dim),
        "two-pass": BidirectionalContext(LATENTS, spec, 2),
        "checkerboard-conv": CheckerboardConvContext(LATENTS, SPEC.dim),
    }
    module = modules[kind]
    for parameter in module.parameters():  # so that every term matters
        parameter.data += 0.3 * torch.randn_like(parameter)
    return module.double().eval()


def latents(h: int, w: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, (2, LATENTS, h, w), generator=generator).double()


@settings(deadline=None, max_examples=40)
@given(GRIDS, st.sampled_from([3, 5, 7]))
def test_positions_outside_the_diamond_share_one_vector(grid: tuple[int, int], num: int) -> None:
    h, w = grid
    index = diamond_bucket_index(h, w, num)
    radius = num // 2
    for query in range(h * w):
        for key in range(h * w):
            dv, dh = key // w - query // w, key % w - query % w
            near = abs(dv) + abs(dh) <= radius
            assert int(index[query, key]) == ((dv + radius) * num + dh + radius if near else 0)


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 8), st.integers(0, 1000))
def test_exactly_k_keys_survive(n: int, k: int, seed: int) -> None:
    scores = torch.randperm(n * 3, generator=torch.Generator().manual_seed(seed))[:n].double()[None]
    weights = topk_softmax(scores, k)
    assert int((weights > 0).sum()) == min(k, n)
    assert float(weights.sum()) == pytest.approx(1)
    kept = scores.topk(min(k, n)).indices
    assert weights[0, kept[0]].numpy() == pytest.approx(scores[0, kept[0]].softmax(0).numpy())


def test_ties_at_the_threshold_are_kept() -> None:
    weights = topk_softmax(torch.tensor([[1.0, 0.5, 0.5, 0.5, 0.0]]), 2)
    assert (weights > 0).tolist() == [[True, True, True, True, False]]


@settings(deadline=None, max_examples=15)
@given(GRIDS, st.sampled_from(["serial", "masked-conv"]), st.data())
def test_serial_features_depend_on_the_past_only(
    grid: tuple[int, int], kind: str, data: st.DataObject
) -> None:
    module, (h, w) = context(kind), grid
    y = latents(h, w)
    changed_at = data.draw(st.integers(0, h * w - 1))
    other = y.clone()
    other.flatten(2)[:, :, changed_at] += 3
    with torch.no_grad():
        before, after = (module(v).flatten(2)[:, :, : changed_at + 1] for v in (y, other))
        assert before.numpy() == pytest.approx(after.numpy(), abs=1e-12)
        if changed_at + 1 < h * w:  # the next position does see it
            assert not torch.allclose(
                module(y).flatten(2)[:, :, changed_at + 1 :], module(other).flatten(2)[:, :, changed_at + 1 :]
            )


@settings(deadline=None, max_examples=15)
@given(GRIDS, st.sampled_from(["two-pass", "checkerboard-conv"]))
def test_two_pass_features_depend_on_the_visible_half_only(grid: tuple[int, int], kind: str) -> None:
    module, (h, w) = context(kind), grid
    y, visible = latents(h, w), checkerboard(*grid)
    with torch.no_grad():
        feature = module(y)
        hidden_changed = module(torch.where(visible, y, y + 5))
        assert torch.equal(feature, hidden_changed)
        assert not feature[:, :, visible].any()
        if visible.any():
            assert not torch.allclose(feature, module(torch.where(visible, y + 5, y)))


@settings(deadline=None, max_examples=15)
@given(
    GRIDS,
    st.sampled_from(["serial", "masked-conv"]),
    st.sampled_from(["diamond", "square", "absolute", "none"]),
)
def test_decoding_step_by_step_gives_the_same_features(
    grid: tuple[int, int], kind: str, position: str
) -> None:
    module, (h, w) = context(kind, position), grid
    y = latents(h, w)
    with torch.no_grad():
        whole = module(y)
        decoding, known = module.decoding(h, w), torch.zeros_like(y)  # type: ignore[operator]
        for row in range(h):
            for column in range(w):
                feature = decoding.feature(known, row, column)
                assert feature.numpy() == pytest.approx(whole[:, :, row, column].numpy(), abs=1e-10)
                known[:, :, row, column] = y[:, :, row, column]


def test_serial_decoding_runs_the_network_on_one_new_token_a_position() -> None:
    module, (h, w) = context("serial"), (3, 4)
    tokens: list[int] = []
    for block in module.stack.blocks:  # type: ignore[union-attr]
        block.mlp.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].shape[1]))
    y, decoding = latents(h, w), module.decoding(h, w)  # type: ignore[operator]
    with torch.no_grad():
        for position in range(h * w):
            decoding.feature(y, *divmod(position, w))
    assert tokens == [1] * (len(module.stack.blocks) * (h * w - 1))  # type: ignore[arg-type,union-attr]


def test_top_k_limits_what_a_query_sees() -> None:
    torch.manual_seed(0)
    stack = TransformerStack(SPEC, 1).double()
    layout = full_layout(4, 5, SPEC.position_num)
    attention = stack.blocks[0].attention
    assert isinstance(attention, SelfAttention)
    q, k, _ = attention.split(torch.randn(1, 20, SPEC.dim).double())
    for topk, seen in ((3, 3), (-1, 20)):
        weights = attention.weights(q, k, layout, stack.table_Pd, topk)
        assert ((weights > 0).sum(-1) == seen).all()
