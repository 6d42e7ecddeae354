"""chex-detection-prepare: draw scenes as COCO is laid out, or check COCO's folder.

Reads nothing (quick), or `data.root`. Writes `data/chex-detection/<scale>/`: `coco.json`, which images take part, and
the scenes themselves (`coco/`).
"""

from pathlib import Path

from stages.chex.detection.params import DetectionParams
from stages.common.dense.coco import list_coco
from stages.common.dense.scene_folders import write_coco_scenes
from stages.common.dense.splits import Split
from stages.common.stage.errors import ParameterError
from stages.common.stage.files import output_dir
from stages.common.stage.params import load_params
from stages.common.stage.run import run, seed_everything


def main() -> None:
    """Prepare the images."""
    params = load_params(DetectionParams, "chex-detection")
    seed_everything(0)
    data = params.data
    drawn = data.kind == "scenes"
    if not drawn and data.root is None:
        raise ParameterError("chex-detection.data.root: missing; give a folder laid out like COCO")
    with output_dir(Path("data/chex-detection") / params.scale) as output:
        root = output / "coco" if data.root is None else Path(data.root)
        if drawn:
            write_coco_scenes(data, root)
        counts: dict[Split, int | None] = {"train": data.train_images, "val": data.val_images}
        list_coco(root, counts, output, masks="mask-rcnn" in params.detectors)


if __name__ == "__main__":
    run(main)
