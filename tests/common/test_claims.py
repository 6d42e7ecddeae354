"""Verdicts: from an interval over seeds, never from a mean alone."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from stages.common.report.claims import Claim, at_least, claims_markdown, exact, not_tested


def claim(effects: list[float], bound: float = 0.0) -> Claim:
    return at_least("1", "a statement", "quick", effects, bound, "points")


@pytest.mark.parametrize(
    ("effects", "bound", "verdict"),
    [
        ([4.0, 5.0, 6.0], 1.0, "supported"),
        ([4.0, 5.0, 6.0], 9.0, "not supported"),
        ([4.0, 5.0, 6.0], 5.0, "inconclusive"),
        ([4.0, 5.0, 6.0], 4.0, "inconclusive"),  # the mean is above the bound, the interval is not
        ([5.0, 5.0], 5.0, "supported"),  # no spread: the interval is the value, the bound is reached
        ([5.0, 5.0], 5.1, "not supported"),
        ([5.0], 1.0, "inconclusive"),  # one seed says nothing about spread
        ([5.0], 9.0, "inconclusive"),
    ],
)
def test_verdicts(effects: list[float], bound: float, verdict: str) -> None:
    result = claim(effects, bound)
    assert result.verdict == verdict
    assert result.n == len(effects)
    assert result.effect == pytest.approx(np.mean(effects))
    assert (result.interval is None) == (len(effects) < 2)


def test_the_interval_is_that_of_a_t_test() -> None:
    effects = [1.0, 2.0, 4.0, 8.0]
    reference = stats.ttest_1samp(effects, 0).confidence_interval(0.95)
    assert claim(effects).interval == pytest.approx((reference.low, reference.high))


effect_lists = st.lists(st.floats(-100, 100), min_size=2, max_size=8)


@given(effect_lists, st.floats(-100, 100))
def test_shifting_all_effects_shifts_the_interval(effects: list[float], constant: float) -> None:
    before, after = claim(effects), claim([effect + constant for effect in effects])
    assert before.interval is not None
    assert after.interval is not None
    assert before.effect is not None
    assert after.effect == pytest.approx(before.effect + constant, abs=1e-6)
    assert after.interval == pytest.approx([end + constant for end in before.interval], abs=1e-6)


@given(effect_lists, st.floats(-100, 100))
def test_verdict_follows_from_interval_and_bound(effects: list[float], bound: float) -> None:
    result = claim(effects, bound)
    assert result.interval is not None
    low, high = result.interval
    assert low <= np.mean(effects) + 1e-9
    assert high >= np.mean(effects) - 1e-9
    assert (result.verdict == "supported") == (low >= bound)
    assert (result.verdict == "not supported") == (high < bound)
    assert f">= {bound:g} points" in result.test


@given(effect_lists, st.floats(0.5, 10))
def test_a_planted_violation_is_seen(effects: list[float], gap: float) -> None:
    """Effects that lie below the bound by more than their own uncertainty cannot be called supported."""
    first = claim(effects)
    assert first.interval is not None
    bound = first.interval[1] + gap
    assert claim(effects, bound).verdict == "not supported"
    assert claim(effects, first.interval[0] - gap).verdict == "supported"


@given(effect_lists, st.integers(0, 7))
def test_one_seed_cannot_be_dropped_unseen(effects: list[float], index: int) -> None:
    fewer = [effect for position, effect in enumerate(effects) if position != index % len(effects)]
    assert claim(fewer).n == len(effects) - 1


def test_a_missing_value_supports_nothing() -> None:
    assert claim([1.0, math.nan, 1.0]).verdict == "inconclusive"


def test_exact_and_untested() -> None:
    assert exact("5", "equal", "quick", True, 0.0, "a count", 3).verdict == "supported"
    assert exact("5", "equal", "quick", False, 1.0, "a count", 3).verdict == "not supported"
    untested = not_tested("8", "elsewhere", "quick", "no such data")
    assert (untested.verdict, untested.effect, untested.n, untested.test) == (
        "not tested at this scale", None, 0, "no such data",
    )  # fmt: skip


def test_what_is_written() -> None:
    claims = [claim([1.0, 2.0, 3.0]), claim([-1.0]), not_tested("8", "elsewhere", "quick", "no such data")]
    for entry in json.loads(json.dumps([c.to_json() for c in claims])):
        assert entry.keys() == {"id", "statement", "scale", "verdict", "effect", "interval", "n", "test"}
    text = claims_markdown("Claims", claims)
    assert text.count("\n| ") == 1 + len(claims)
    assert "| **inconclusive** | 2 | -0.4841 .. 4.484 | 3 |" in text
    assert "| **inconclusive** | -1 |  | 1 |" in text
    assert "| **not tested at this scale** |  |  | 0 | no such data |" in text
