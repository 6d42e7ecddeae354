"""chex-points-evaluate: test every network that was trained, and count what is left of it.

Reads `data/chex-points/<scale>/`, `runs/chex-points/<scale>/pretrain/` and `prune/`.
Writes `runs/chex-points/<scale>/evaluate/` as `stages.chex.evaluation` says.
"""

from stages.chex.evaluation import evaluate
from stages.chex.points.training import CloudStudy
from stages.common.stage.run import run


def main() -> None:
    """Evaluate all cells that the parameters name."""
    evaluate(CloudStudy())


if __name__ == "__main__":
    run(main)
