"""chex-detection-prune: one method and seed, on every detector and at every FLOPs target.

Reads `data/chex-detection/<scale>/` and `runs/chex-detection/<scale>/pretrain/<seed>/`. Writes
`runs/chex-detection/<scale>/prune/<method>-<seed>/` as `stages.chex.pruning` says.
"""

from stages.chex.detection.training import DetectorStudy
from stages.chex.pruning import prune
from stages.common.stage.run import run


def main() -> None:
    """Train and prune one cell of the matrix."""
    prune(DetectorStudy())


if __name__ == "__main__":
    run(main)
