"""chex-pretrain: train the dense networks of one seed.

Reads `data/chex/<scale>/`. Writes `runs/chex/<scale>/pretrain/<seed>/` as `stages.chex.pretraining` says.
"""

from stages.chex.pretraining import pretrain
from stages.chex.training import ImageStudy
from stages.common.stage.run import run


def main() -> None:
    """Train the dense networks of a seed."""
    pretrain(ImageStudy())


if __name__ == "__main__":
    run(main)
