"""elsa-dense-prepare: draw scenes as COCO and ADE20K are laid out, or check the folders of the real ones.

Reads nothing (quick), or `detection.data.root` and `segmentation.data.root`. Writes `data/elsa-dense/<scale>/`: `coco.json`
and `ade.json`, which images take part, and the scenes themselves (`coco/`, `ade/`).
"""

from pathlib import Path

from stages.common.dense.coco import list_coco
from stages.common.dense.params import DenseData
from stages.common.dense.scene_folders import write_ade_scenes, write_coco_scenes
from stages.common.dense.semantic import list_ade
from stages.common.dense.splits import Split
from stages.common.stage.errors import ParameterError
from stages.common.stage.files import output_dir
from stages.common.stage.params import load_params
from stages.common.stage.run import run, seed_everything
from stages.elsa.dense.params import ElsaDenseParams, Task


def main() -> None:
    """Prepare the data of both tasks."""
    params = load_params(ElsaDenseParams, "elsa-dense")
    seed_everything(0)
    detection, segmentation = params.detection.data, params.segmentation.data
    roots = _root(detection, "detection"), _root(segmentation, "segmentation")
    with output_dir(Path("data/elsa-dense") / params.scale) as output:
        if detection.kind == "scenes":
            write_coco_scenes(detection, output / "coco")
        list_coco(roots[0] or output / "coco", _counts(detection), output, masks=True)
        if segmentation.kind == "scenes":
            write_ade_scenes(segmentation, output / "ade")
        list_ade(roots[1] or output / "ade", _counts(segmentation), output)


def _root(data: DenseData, task: Task) -> Path | None:
    """The folder that holds the data set; None for scenes.

    Raises:
        ParameterError: a folder is needed and none is given.
    """
    if data.kind == "scenes":
        return None
    if data.root is None:
        layout = "COCO" if task == "detection" else "ADE20K"
        raise ParameterError(f"elsa-dense.{task}.data.root: missing; give a folder laid out like {layout}")
    return Path(data.root)


def _counts(data: DenseData) -> dict[Split, int | None]:
    return {"train": data.train_images, "val": data.val_images}


if __name__ == "__main__":
    run(main)
