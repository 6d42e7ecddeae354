"""chex-detection-pretrain: train the dense detectors of one seed.

Reads `data/chex-detection/<scale>/`.
Writes `runs/chex-detection/<scale>/pretrain/<seed>/` as `stages.chex.pretraining` says.
"""

from stages.chex.detection.training import DetectorStudy
from stages.chex.pretraining import pretrain
from stages.common.stage.run import run


def main() -> None:
    """Train the dense detectors of a seed."""
    pretrain(DetectorStudy())


if __name__ == "__main__":
    run(main)
