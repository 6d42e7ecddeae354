"""uot-prepare: generate the quick scale's classes, or list the image folders of the source and the targets.

Reads nothing (quick), or `image_root` with `imagenet/train/<wnid>/*` and `<target>/{train,val}/<class>/*`,
and `imagenet_classes.csv` of the data set `uot` for the concept groups of ImageNet's classes. Writes
`data/uot/<scale>/<seed>/` as `stages.uot.data` says.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from stages.common.stage.errors import ParameterError
from stages.common.stage.files import output_dir
from stages.common.stage.params import load_params
from stages.common.stage.run import run, seed_everything
from stages.uot.concepts import CONCEPTS, World
from stages.uot.folders import list_images
from stages.uot.params import UotParams
from stages.uot.released_files import read_classes

SOURCE_PER_CONCEPT, SOURCE_IMAGES = 6, 300
TARGET_PER_CONCEPT = {0: 6, 1: 6}
TARGET_IMAGES, TEST_IMAGES = 200, 200  # per class; fractions of the training images make the shots
MIXED_PER_CONCEPT, MIXED_SHIFT, MIXED_IMAGES = (
    {2: 9, 3: 6, 4: 3},
    {4: 1.5},
    20,
)  # claim 8: the last concept is shifted


def main() -> None:
    """Prepare the data of every seed."""
    params = load_params(UotParams, "uot")
    seed_everything(0)
    with output_dir(Path("data/uot") / params.scale) as folder:
        for seed in params.seeds:
            with output_dir(folder / str(seed)) as output:
                if params.targets == ["concepts"]:
                    save_file(concepts(seed), output / "concepts.safetensors")
                else:
                    (output / "folders.json").write_text(json.dumps(folders(params, seed)))


def concepts(seed: int) -> dict[str, Tensor]:
    """Source, target, test and the heterogeneous target of one seed."""
    world = World(seed)
    source = world.new_classes(dict.fromkeys(range(CONCEPTS), SOURCE_PER_CONCEPT))
    target = world.new_classes(TARGET_PER_CONCEPT)
    mixed = world.new_classes(MIXED_PER_CONCEPT, MIXED_SHIFT)
    parts = {
        "source": (source, SOURCE_IMAGES),
        "target": (target, TARGET_IMAGES),
        "test": (target, TEST_IMAGES),
        "mixed": (mixed, MIXED_IMAGES),
    }
    arrays: dict[str, Tensor] = {}
    for name, (classes, images) in parts.items():
        arrays[f"{name}_x"], arrays[f"{name}_y"] = world.sample(classes, images)
        if name != "test":  # whose classes are the target's
            arrays[f"{name}_group"] = classes.concept
    return arrays


def folders(params: UotParams, seed: int) -> dict[str, dict[str, object]]:
    """Class names, files and labels of the source and of every target; training images in the seed's order.

    Raises:
        ParameterError: no `image_root` is given.
        InputError: a folder is missing or has no images, or the authors' concept groups are missing.
    """
    if params.image_root is None:
        raise ParameterError("uot.image_root: missing; give the folder that has imagenet/ and the targets")
    root = Path(params.image_root).resolve()
    classes, files, labels = list_images(root / "imagenet" / "train")
    groups = {row["wnid"]: row["concept"] for row in read_classes()}
    listing: dict[str, dict[str, object]] = {
        "source": {
            "classes": classes,
            "groups": [groups.get(name, "others") for name in classes],
            "files": files,
            "labels": labels,
        }
    }
    for target in params.targets:
        for split in ("train", "val"):
            classes, files, labels = list_images(root / target / split)
            order = list(range(len(files)))
            if split == "train":
                order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed)).tolist()
            listing[f"{target}/{split}"] = {
                "classes": classes,
                "files": [files[i] for i in order],
                "labels": [labels[i] for i in order],
            }
    return listing


if __name__ == "__main__":
    run(main)
