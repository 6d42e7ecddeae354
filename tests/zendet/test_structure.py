"""Structures: parsing, costs against real modules, laws of the mutations."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stages.zendet.method.cost import count_flops, count_layers, count_params
from stages.zendet.method.entropy import EntropyScorer, entropy_score, propagate
from stages.zendet.method.masternet import MasterNet
from stages.zendet.method.published import INITIAL_DETECTION, INITIAL_MOBILE, PUBLISHED
from stages.zendet.method.spaces import SPACES, STEPS, round8
from stages.zendet.method.structure import Structure, dump_structure, parse_structure

SIZE = 96
STARTS: dict[str, tuple[Structure, int]] = {
    "k1kxk1": (INITIAL_DETECTION, 40),
    "k1dwk1": (INITIAL_MOBILE, 53),
}


@st.composite
def mutants(draw: st.DrawFn) -> tuple[str, str, Structure, Structure]:
    """A space, its rules, a structure some steps from the start, and one mutation of it."""
    kind, rules = draw(st.sampled_from(sorted(STARTS))), draw(st.sampled_from(["2022", "2023"]))
    start, layers = STARTS[kind]
    rng = random.Random(draw(st.integers(0, 10**6)))
    space = SPACES[kind](layers, SIZE, rules)  # type: ignore[index,arg-type]
    parent = start
    for _ in range(draw(st.integers(0, 12))):
        parent = space.mutate(parent, rng)
    return kind, rules, parent, space.mutate(parent, rng, fine=draw(st.booleans()))


@given(mutants())
@settings(max_examples=150, deadline=None)
def test_mutations_keep_what_must_hold(drawn: tuple[str, str, Structure, Structure]) -> None:
    kind, _, parent, child = drawn
    assert len(child) == len(parent)
    cin = 3
    for before, after in zip(parent, child, strict=True):
        assert after.cin == cin
        assert (after.kind, after.stride) == (before.kind, before.stride)
        assert after.kernel in (1, 3, 5)
        assert after.cout % 8 == 0
        assert after.mid % 8 == 0
        assert after.depth >= 1
        cin = after.cout
    differ = [b[2] != a[2] or b[5:] != a[5:] for b, a in zip(parent, child, strict=True)]
    layers = STARTS[kind][1]
    if count_layers(child) < layers - 6 * STEPS:  # no step can have met the layer budget
        assert sum(differ) <= STEPS
    if kind == "k1dwk1":
        assert child[-1].cout == parent[-1].cout


@given(mutants())
@settings(max_examples=60, deadline=None)
def test_text_form_and_scores_agree(drawn: tuple[str, str, Structure, Structure]) -> None:
    child = drawn[3]
    assert parse_structure(dump_structure(child)) == child
    for method in ("analytic", "closed_form"):
        fast = EntropyScorer((SIZE, 2 * SIZE), method=method)(child)
        assert fast == pytest.approx(entropy_score(child, (SIZE, 2 * SIZE), method=method).total)


@pytest.mark.parametrize("start", [INITIAL_DETECTION, INITIAL_MOBILE])
def test_counts_are_those_of_the_module(start: Structure) -> None:
    net = MasterNet(start)
    assert count_params(start) == sum(p.numel() for p in net.parameters())
    macs = 0

    def count(conv: nn.Conv2d, _: object, output: torch.Tensor) -> None:
        nonlocal macs
        macs += output.numel() * conv.weight[0].numel()

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    net.eval()(torch.zeros(1, 3, SIZE, SIZE))
    assert count_flops(start, SIZE, "conv") == macs


def test_published_backbones() -> None:
    s, m, large = (PUBLISHED[f"MAE-DET-{letter}"] for letter in "SML")
    assert [count_params(net) for net in (s, m, large)] == [21_233_120, 25_843_536, 43_879_552]
    flops = [count_flops(net, (800, 1280), "conv_bn2") / 1e9 for net in (s, m, large)]
    assert [round(value, 1) for value in flops] == [48.7, 89.9, 152.9]
    assert [count_layers(net) for net in (s, m, large)] == [79, 91, 109]
    scores = [entropy_score(net, 480).total for net in (s, m, large)]
    assert scores == pytest.approx([1729.491, 2111.277, 2595.242], abs=2e-3)  # the card's


def test_propagation_counts_valid_taps() -> None:
    log_mean, profile = propagate((1.0, 1.0, 1.0, 1.0), 3, 1)
    assert log_mean == pytest.approx(torch.tensor([2.0, 3.0, 3.0, 2.0]).mean().log().item())
    assert profile == pytest.approx((0.8, 1.2, 1.2, 0.8))
    assert propagate((1.0, 1.0, 1.0, 1.0), 1, 2) == (0.0, (1.0, 1.0))


@pytest.mark.parametrize(("value", "rounded"), [(1, 8), (12, 16), (20, 16), (28, 32), (100, 96)])
def test_round8_is_half_to_even(value: int, rounded: int) -> None:
    assert round8(value) == rounded


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("__import__('os')", "Python list of dicts"),
        ("[]", "non-empty"),
        ("[{'class': 'Conv'}]", "'class' must be one of"),
        (
            "[{'class': 'ConvKXBNRELU', 'in': 3, 'out': 8, 's': 2, 'k': 3, 'act': 'relu'}]",
            "unknown key 'act'",
        ),
        ("[{'class': 'ConvKXBNRELU', 'in': 3, 'out': 0, 's': 2, 'k': 3}]", "'out' = 0"),
        ("[{'class': 'ConvKXBNRELU', 'in': 3, 'out': 8, 's': 3, 'k': 3}]", "must be 1 or 2"),
        ("[{'class': 'ConvKXBNRELU', 'in': 3, 'out': 8, 's': 2, 'k': 4}]", "must be odd"),
        ("[{'class': 'ConvKXBNRELU', 'in': 4, 'out': 8, 's': 2, 'k': 3}]", "'in' = 3"),
    ],
)
def test_wrong_structures_are_told_in_one_line(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as error:
        parse_structure(text)
    assert "\n" not in str(error.value)


def test_both_releases_and_both_file_forms_are_read() -> None:
    text = dump_structure(INITIAL_DETECTION)
    old = text.replace("SuperResK1KXK1'", "SuperResConvK1KXK1', 'inner_class': 'ResConvK1KXK1'")
    assert parse_structure(old) == INITIAL_DETECTION
    assert parse_structure(f"{{'best_structures': [{text}], 'space_arch': 'CnnNet'}}") == INITIAL_DETECTION


def test_images_must_be_multiples_of_32() -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        MasterNet(INITIAL_DETECTION)(torch.zeros(1, 3, 80, 96))


def test_alphas_must_fit_the_stages() -> None:
    with pytest.raises(ValueError, match="5 stages"):
        entropy_score(INITIAL_DETECTION, 96, (0.0, 1.0))
