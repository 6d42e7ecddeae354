"""chex-detection-evaluate: test every detector that was trained, and count what is left of it.

Reads `data/chex-detection/<scale>/`, `runs/chex-detection/<scale>/pretrain/` and `prune/`.
Writes `runs/chex-detection/<scale>/evaluate/` as `stages.chex.evaluation` says.
"""

from stages.chex.detection.training import DetectorStudy
from stages.chex.evaluation import evaluate
from stages.common.stage.run import run


def main() -> None:
    """Evaluate all cells that the parameters name."""
    evaluate(DetectorStudy())


if __name__ == "__main__":
    run(main)
