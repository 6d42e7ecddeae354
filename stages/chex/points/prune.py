"""chex-points-prune: one method and seed, on every data set and at every FLOPs target.

Reads `data/chex-points/<scale>/` and `runs/chex-points/<scale>/pretrain/<seed>/`. Writes
`runs/chex-points/<scale>/prune/<method>-<seed>/` as `stages.chex.pruning` says.
"""

from stages.chex.points.training import CloudStudy
from stages.chex.pruning import prune
from stages.common.stage.run import run


def main() -> None:
    """Train and prune one cell of the matrix."""
    prune(CloudStudy())


if __name__ == "__main__":
    run(main)
