"""chex-prune: one method and seed, on every data set and at every FLOPs target.

Reads `data/chex/<scale>/` and `runs/chex/<scale>/pretrain/<seed>/`. Writes
`runs/chex/<scale>/prune/<method>-<seed>/` as `stages.chex.pruning` says.
"""

from stages.chex.pruning import prune
from stages.chex.training import ImageStudy
from stages.common.stage.run import run


def main() -> None:
    """Train and prune one cell of the matrix."""
    prune(ImageStudy())


if __name__ == "__main__":
    run(main)
