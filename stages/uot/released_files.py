"""The registered data set `uot`: what the authors released, as `stages.uot.import_released` makes it from a clone.

None of it is part of this repository. Files: class means per `<start>/<set>`; WordNet id, concept and name of
ImageNet's classes in order; the official code's selection of 100 classes per `<start>/<target>`.
"""

import csv
from pathlib import Path

from stages.common.datasets import fetch, in_mirror
from stages.common.stage.errors import InputError

DATASET, MEANS, CLASSES, SELECTIONS = (
    "uot",
    "class_means.safetensors",
    "imagenet_classes.csv",
    "selections.json",
)
HOME = "https://github.com/ziquanliu/NeurIPS2022_UOT_fine_tuning"


def released_file(name: str) -> Path:
    """Path of one of the files, its bytes checked.

    Raises:
        InputError: the mirror does not have it (the message says how to make it), or its bytes are not right.
    """
    if not in_mirror(DATASET, name):
        raise InputError(
            f"{DATASET}/{name}: not in ENCORE_MIRROR; clone {HOME}, run "
            "`python -m stages.uot.import_released CLONE` and set ENCORE_MIRROR as it says"
        )
    return fetch(DATASET, name)


def read_classes() -> list[dict[str, str]]:
    """`wnid`, `concept` and `name` of ImageNet's classes, in order."""
    with released_file(CLASSES).open() as file:
        return list(csv.DictReader(file))
