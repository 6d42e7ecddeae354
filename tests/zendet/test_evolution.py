"""The search: population, islands, resume, budgets."""

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.zendet.method.budget import Budget
from stages.zendet.method.cost import count_flops, count_layers
from stages.zendet.method.entropy import EntropyScorer
from stages.zendet.method.evolution import EvolutionarySearch, Population
from stages.zendet.method.published import INITIAL_DETECTION, INITIAL_MOBILE
from stages.zendet.method.spaces import K1DWK1Space, K1KXK1Space
from stages.zendet.method.structure import BlockSpec, Structure

SIZE, LAYERS = 96, 31
SEARCH = EvolutionarySearch(
    K1KXK1Space(LAYERS, SIZE),
    Budget(SIZE, 1e9, layers=LAYERS),
    EntropyScorer(SIZE),
    INITIAL_DETECTION,
    evaluations=600,
    population=16,
    seed=3,
    islands=3,
    round=50,
)


def numbered(number: int) -> Structure:
    return (BlockSpec("conv", 3, number, 2, 3),)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 30)), max_size=60), st.integers(1, 8))
def test_population_keeps_the_best_distinct_structures(drawn: list[tuple[int, int]], capacity: int) -> None:
    scores = {number: score for score, number in reversed(drawn)}  # a structure's first score
    population, seen = Population(capacity), []
    for _, number in drawn:
        population.insert(float(scores[number]), numbered(number))
        if number not in seen:
            seen.append(number)
    expected = sorted(seen, key=lambda number: (-scores[number], seen.index(number)))[:capacity]
    assert [s[0].cout for _, s in population.ranked()] == expected


def test_budget_holds_for_all_that_is_found_and_the_score_grows() -> None:
    result = SEARCH.run()
    for score, structure in result.ranked:
        assert count_flops(structure, SIZE) <= 1e9
        assert count_layers(structure) <= LAYERS
        assert score == SEARCH.objective(structure)
    assert len({structure for _, structure in result.ranked}) == len(result.ranked)
    best = [row["best"] for row in result.history]
    assert best == sorted(best)
    assert best[-1] > 1.2 * SEARCH.objective(INITIAL_DETECTION)
    assert result.history[-1]["evaluations"] == SEARCH.evaluations


def test_processes_do_not_change_the_result() -> None:
    assert SEARCH.run(processes=1) == SEARCH.run(processes=2)


@pytest.mark.parametrize("change", [{}, {"select": False}, {"mutation": "coarse_to_fine"}])
def test_resume_ends_with_the_same_result(change: dict[str, Any]) -> None:
    search = replace(SEARCH, **change)
    states: list[dict[str, Any]] = []
    whole = search.run(on_round=lambda state: states.append(copy.deepcopy(state)))
    for state in (states[0], states[len(states) // 2], states[-1]):
        assert search.run(state=state) == whole


def test_seeds_differ_and_repeat() -> None:
    assert SEARCH.run() == SEARCH.run()
    assert SEARCH.run().ranked != replace(SEARCH, seed=4).run().ranked


def test_fine_moves_change_widths_only() -> None:
    found = replace(SEARCH, mutation="fine", budget=Budget(SIZE, layers=LAYERS)).run().ranked
    shape = [(block.kernel, block.depth) for block in INITIAL_DETECTION]
    assert all([(block.kernel, block.depth) for block in structure] == shape for _, structure in found)


def test_selection_beats_a_random_walk() -> None:
    assert SEARCH.run().ranked[0][0] > replace(SEARCH, select=False).run().ranked[0][0]


def test_mobile_space_with_a_latency_budget_finds_something() -> None:
    # the authors' code rejects every candidate of this space when latency is limited (card, "Pitfalls")
    budget = Budget(SIZE, layers=53, latency=2e3, latency_of=lambda s: 1e-5 * count_flops(s, SIZE))
    search = EvolutionarySearch(K1DWK1Space(53, SIZE), budget, EntropyScorer(SIZE), INITIAL_MOBILE, 300, 16)
    result = search.run()
    assert result.ranked[0][0] > search.objective(INITIAL_MOBILE)


@pytest.mark.parametrize(
    ("budget", "problem"),
    [
        (Budget(SIZE, flops=1e6), "FLOPs, at most"),
        (Budget(SIZE, params=10), "parameters, at most"),
        (Budget(SIZE, layers=4), "layers, at most"),
        (Budget(SIZE, min_layers=99), "layers, at least"),
        (Budget(SIZE, min_flops=1e12), "FLOPs, at least"),
        (Budget(SIZE, latency=1.0, latency_of=lambda _: 2.0), "ms, at most"),
    ],
)
def test_a_start_outside_the_budget_is_told(budget: Budget, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        replace(SEARCH, budget=budget).run()
