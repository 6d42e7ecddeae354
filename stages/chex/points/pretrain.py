"""chex-points-pretrain: train the dense networks of one seed.

Reads `data/chex-points/<scale>/`. Writes `runs/chex-points/<scale>/pretrain/<seed>/` as `stages.chex.pretraining` says.
"""

from stages.chex.points.training import CloudStudy
from stages.chex.pretraining import pretrain
from stages.common.stage.run import run


def main() -> None:
    """Train the dense networks of a seed."""
    pretrain(CloudStudy())


if __name__ == "__main__":
    run(main)
