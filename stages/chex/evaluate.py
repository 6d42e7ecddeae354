"""chex-evaluate: test every network that was trained, and count what is left of it.

Reads `data/chex/<scale>/`, `runs/chex/<scale>/pretrain/` and `prune/`. Writes `runs/chex/<scale>/evaluate/` as
`stages.chex.evaluation` says.
"""

from stages.chex.evaluation import evaluate
from stages.chex.training import ImageStudy
from stages.common.stage.run import run


def main() -> None:
    """Evaluate all cells that the parameters name."""
    evaluate(ImageStudy())


if __name__ == "__main__":
    run(main)
