"""zendet-prepare: generate the quick scale's scenes, or list the images of COCO that take part.

Reads nothing (quick), or the folder `data.root` with `train2017/`, `val2017/` and `annotations/instances_*.json`. Writes
`data/zendet/<scale>/`: `coco.json`, as `stages.common.dense.coco` lists images, and `scenes/`, where they are generated.
The searches need no data.
"""

from pathlib import Path

from stages.common.dense.coco import list_coco
from stages.common.dense.scene_folders import write_coco_scenes
from stages.common.dense.splits import Split
from stages.common.stage.errors import ParameterError
from stages.common.stage.files import output_dir
from stages.common.stage.params import load_params
from stages.common.stage.run import run, seed_everything
from stages.zendet.params import ZendetParams


def main() -> None:
    """Prepare the data of the active scale."""
    params = load_params(ZendetParams, "zendet")
    seed_everything(0)
    data = params.data
    counts: dict[Split, int | None] = {"train": data.train_images, "val": data.val_images}
    with output_dir(Path("data/zendet") / params.scale) as output:
        if data.kind == "scenes":
            write_coco_scenes(data, output / "scenes")
            list_coco(output / "scenes", counts, output, masks=False)
        elif data.root is None:
            raise ParameterError(
                "zendet.data.root: missing; give the folder that has annotations/ and train2017/"
            )
        else:
            list_coco(Path(data.root), counts, output, masks=False)


if __name__ == "__main__":
    run(main)
