"""What a search maximises: the entropy score, its opposite for the control, and the proxies it is compared with."""

from dataclasses import dataclass

from torch import Generator

from stages.zendet.method.cost import Size, count_flops, count_params
from stages.zendet.method.entropy import EntropyScorer
from stages.zendet.method.evolution import Objective
from stages.zendet.method.proxies import zen_score_of
from stages.zendet.method.structure import Structure
from stages.zendet.params import Strategy


@dataclass(frozen=True)
class Negated:
    """The opposite of an objective."""

    objective: Objective

    def __call__(self, structure: Structure) -> float:
        """Minus the score."""
        return -self.objective(structure)


@dataclass(frozen=True)
class Flops:
    """The official FLOPs at an image size."""

    size: Size

    def __call__(self, structure: Structure) -> float:
        """FLOPs of a structure."""
        return count_flops(structure, self.size)


@dataclass(frozen=True)
class Params:
    """The number of parameters."""

    def __call__(self, structure: Structure) -> float:
        """Parameters of a structure."""
        return float(count_params(structure))


@dataclass(frozen=True)
class Zen:
    """Zen-score with the same draws for every structure."""

    size: Size
    seed: int

    def __call__(self, structure: Structure) -> float:
        """Zen-score of a structure."""
        return zen_score_of(structure, self.size, Generator().manual_seed(self.seed))


def objective_of(strategy: Strategy, size: Size, seed: int) -> Objective:
    """The objective of a strategy ("random" only picks its best candidate by it)."""
    match strategy:
        case "entropy" | "random":
            return EntropyScorer(size)
        case "min-entropy":
            return Negated(EntropyScorer(size))
        case "zen":
            return Zen(size, seed)
        case "flops":
            return Flops(size)
        case _:
            return Params()
