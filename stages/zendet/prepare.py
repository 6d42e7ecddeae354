"""zendet-prepare: generate the quick scale's scenes, or list the images of COCO that take part.

Reads nothing (quick), or `coco_root` with `train2017/`, `val2017/` and `annotations/instances_*.json`. Writes
`data/zendet/<scale>/` as `stages.zendet.data` says. The searches need no data.
"""

import json
import random
from pathlib import Path

from safetensors.torch import save_file

from stages.common.stage.errors import InputError, ParameterError
from stages.common.stage.files import output_dir
from stages.common.stage.params import load_params
from stages.common.stage.run import run, seed_everything
from stages.zendet.params import ZendetParams
from stages.zendet.scenes import make_scenes

SCENE_SEEDS = {"train": 0, "val": 1}


def main() -> None:
    """Prepare the data of the active scale."""
    params = load_params(ZendetParams, "zendet")
    seed_everything(0)
    counts = {"train": params.data.train_images, "val": params.data.val_images}
    with output_dir(Path("data/zendet") / params.scale) as output:
        if params.data.kind == "scenes":
            for split, count in counts.items():
                assert count is not None
                scenes = make_scenes(count, params.image_size, SCENE_SEEDS[split])
                save_file(scenes, output / f"{split}.safetensors")
        else:
            (output / "coco.json").write_text(json.dumps(coco_listing(params, counts)))


def coco_listing(params: ZendetParams, counts: dict[str, int | None]) -> dict[str, object]:
    """The root and the image ids of both splits; training images need an object.

    Raises:
        ParameterError: no `coco_root` is given.
        InputError: an annotation file or an image folder is missing or damaged.
    """
    if params.data.coco_root is None:
        raise ParameterError(
            "zendet.data.coco_root: missing; give the folder that has annotations/ and train2017/"
        )
    root = Path(params.data.coco_root).resolve()
    listing: dict[str, object] = {"root": str(root)}
    for split, count in counts.items():
        path = root / "annotations" / f"instances_{split}2017.json"
        if not (root / f"{split}2017").is_dir():
            raise InputError(f"{root / f'{split}2017'}: not a folder of images")
        try:
            content = json.loads(path.read_text())
            ids = sorted(image["id"] for image in content["images"])
            shown = {a["image_id"] for a in content["annotations"] if not a["iscrowd"]}
        except FileNotFoundError:
            raise InputError(f"{path}: not found") from None
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}: not an annotation file of COCO") from None
        if split == "train":
            ids = [image for image in ids if image in shown]
        listing[split] = ids if count is None else sorted(random.Random(0).sample(ids, min(count, len(ids))))
    return listing


if __name__ == "__main__":
    run(main)
