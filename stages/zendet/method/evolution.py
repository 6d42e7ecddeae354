"""The evolutionary search (card, section 5): a uniform parent, a mutation, the budget, a score, the best N stay.

Islands evolve apart and hand their best to the next island after every round, in a fixed order; so a search gives the
same result in one process as in several, and can go on from its last round.
"""

import bisect
import math
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from stages.zendet.method.budget import Budget
from stages.zendet.method.spaces import Space
from stages.zendet.method.structure import BlockSpec, Structure

Objective = Callable[[Structure], float]
Mutation = Literal["coarse", "fine", "coarse_to_fine"]
MIGRANTS = 8
ROUND = 1000  # evaluations of one island between two exchanges
SWITCH, SURVIVORS = 0.5, 10  # coarse to fine: when, and how many structures remain


class Population:
    """The best `capacity` distinct structures by score; equal scores stay in order of arrival.

    Without `select` the newest stay instead (a random walk), and only the best one is remembered.
    """

    def __init__(self, capacity: int, select: bool = True) -> None:
        self.capacity, self.select = capacity, select
        self._entries: list[tuple[float, int, float, Structure]] = []  # key, arrival, score, structure
        self._members: set[Structure] = set()
        self._arrivals = 0
        self.best: tuple[float, Structure] | None = None

    def insert(self, score: float, structure: Structure) -> None:
        """Take a structure in, unless it is there or too bad."""
        if self.best is None or score > self.best[0]:
            self.best = score, structure
        if structure in self._members:
            return
        self._arrivals += 1
        key = -score if self.select else -self._arrivals
        if len(self._entries) == self.capacity:
            if key >= self._entries[-1][0]:
                return
            self._members.remove(self._entries.pop()[3])
        bisect.insort(self._entries, (key, self._arrivals, score, structure))
        self._members.add(structure)

    def truncate(self, size: int) -> None:
        """Keep the first `size`."""
        self._members -= {entry[3] for entry in self._entries[size:]}
        del self._entries[size:]

    def draw(self, rng: Random) -> Structure:
        """A uniform choice."""
        return self._entries[rng.randrange(len(self._entries))][3]

    def ranked(self) -> list[tuple[float, Structure]]:
        """Scores and structures in order."""
        return [(score, structure) for _, _, score, structure in self._entries]


@dataclass
class Island:
    """One population with its generator and its counts."""

    rng: Random
    population: Population
    seen: set[int]  # hashes of the structures met, the rejected ones included
    evaluations: int = 0
    feasible: int = 0
    fine: bool = False  # whether only widths move

    def state(self) -> dict[str, Any]:
        """Plain lists and numbers, from which `restore` makes the same island."""
        version, words, _ = self.rng.getstate()
        best = self.population.best
        return {
            "rng": [version, list(words)],
            "entries": [[score, _plain(structure)] for score, structure in self.population.ranked()],
            "best": [best[0], _plain(best[1])] if best else None,
            "seen": sorted(self.seen),
            "evaluations": self.evaluations,
            "feasible": self.feasible,
            "fine": self.fine,
        }

    @classmethod
    def restore(cls, state: dict[str, Any], capacity: int, select: bool) -> "Island":
        """The island that had this state."""
        rng = Random()
        rng.setstate((state["rng"][0], tuple(state["rng"][1]), None))
        population = Population(capacity, select)
        # a walk's newest entry comes first
        for score, blocks in state["entries"] if select else reversed(state["entries"]):
            population.insert(score, _structure(blocks))
        if state["best"]:
            population.best = state["best"][0], _structure(state["best"][1])
        return cls(
            rng, population, set(state["seen"]), state["evaluations"], state["feasible"], state["fine"]
        )


def _plain(structure: Structure) -> list[list[Any]]:
    return [list(block) for block in structure]


def _structure(blocks: list[list[Any]]) -> Structure:
    return tuple(BlockSpec(*block) for block in blocks)


def _identity(structure: Structure) -> int:
    """A hash that is the same in every process (Python salts those of strings); kinds do not change in a search."""
    return hash(tuple(block[1:] for block in structure))


@dataclass(frozen=True)
class SearchResult:
    """The last populations together, best first, and one row per round."""

    ranked: list[tuple[float, Structure]]
    history: list[dict[str, float]]

    @property
    def best(self) -> Structure:
        """The structure with the highest score."""
        return self.ranked[0][1]


@dataclass(frozen=True)
class EvolutionarySearch:
    """A search of `evaluations` candidates, shared evenly by `islands`; `run` does it.

    `objective` is maximised. With `select=False` it only says which candidate of a random walk is the best.
    """

    space: Space
    budget: Budget
    objective: Objective
    initial: Structure
    evaluations: int
    population: int = 256
    seed: int = 0
    islands: int = 1
    mutation: Mutation = "coarse"
    select: bool = True
    round: int = ROUND

    def run(
        self,
        processes: int = 1,
        state: dict[str, Any] | None = None,
        on_round: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> SearchResult:
        """Search; `on_round` is given the state after every round, from which a later call goes on.

        Raises:
            ValueError: the initial structure does not keep to the budget.
        """
        if violation := self.budget.violation(self.initial):
            raise ValueError(f"the initial structure has {violation}; start from a smaller one")
        state = state or {"islands": [self._first(i).state() for i in range(self.islands)], "history": []}
        rounds = math.ceil(self.evaluations / (self.round * self.islands))
        workers = min(processes, self.islands)
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) if workers > 1 else None
        try:
            for number in range(len(state["history"]), rounds):
                advance = pool.map if pool else map
                states = list(advance(self._advance, state["islands"], [number / rounds] * self.islands))
                islands = [self._restored(s) for s in states]
                self._exchange(islands)
                state = {
                    "islands": [island.state() for island in islands],
                    "history": [*state["history"], self._row(islands)],
                }
                on_round(state)
        finally:
            if pool:
                pool.shutdown()
        islands = [self._restored(s) for s in state["islands"]]
        merged = {structure: score for island in islands for score, structure in island.population.ranked()}
        merged |= {i.population.best[1]: i.population.best[0] for i in islands if i.population.best}
        ranked = sorted(((score, s) for s, score in merged.items()), key=lambda entry: (-entry[0], entry[1]))
        return SearchResult(ranked, state["history"])

    def _first(self, index: int) -> Island:
        island = Island(
            Random(f"{self.seed} {index}"),
            Population(self.population, self.select),
            {_identity(self.initial)},
        )
        island.population.insert(self.objective(self.initial), self.initial)
        return island

    def _restored(self, state: dict[str, Any]) -> Island:
        return Island.restore(state, self.population, self.select)

    def _advance(self, state: dict[str, Any], progress: float) -> dict[str, Any]:
        """One round of one island; `progress` is the share of the search that is done."""
        island = self._restored(state)
        fine = self.mutation == "fine" or (self.mutation == "coarse_to_fine" and progress >= SWITCH)
        if fine and self.mutation == "coarse_to_fine" and not island.fine:
            island.population.truncate(SURVIVORS)
        island.fine = fine
        share = self.evaluations // self.islands
        for _ in range(min(self.round, share - island.evaluations)):
            island.evaluations += 1
            child = self.space.mutate(island.population.draw(island.rng), island.rng, fine)
            identity = _identity(child)
            if identity in island.seen:
                continue
            island.seen.add(identity)
            if self.budget.holds(child):
                island.feasible += 1
                island.population.insert(self.objective(child), child)
        return island.state()

    def _exchange(self, islands: list[Island]) -> None:
        """Every island takes the best few of the one before it."""
        if self.select:
            best = [island.population.ranked()[:MIGRANTS] for island in islands]
            for island, migrants in zip(islands, best[-1:] + best[:-1], strict=True):
                for score, structure in migrants:
                    island.population.insert(score, structure)

    def _row(self, islands: list[Island]) -> dict[str, float]:
        return {
            "evaluations": sum(island.evaluations for island in islands),
            "feasible": sum(island.feasible for island in islands),
            "distinct": len(set().union(*(island.seen for island in islands))),
            "best": max(island.population.best[0] for island in islands if island.population.best),
        }
