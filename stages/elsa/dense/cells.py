"""What names a run of ELSA's dense tasks: task, mixer, seed."""

from typing import get_args

from stages.common.stage.tracking import RunLog, run_key
from stages.elsa.dense.params import Detection, ElsaDenseParams, Segmentation, Task
from stages.elsa.params import MixerName

FULL_SIZE = "full size"  # the setting of results that count the published networks
TASKS: tuple[Task, ...] = get_args(Task)


def section_of(params: ElsaDenseParams, task: Task) -> Detection | Segmentation:
    """The parameters of a task."""
    return params.detection if task == "detection" else params.segmentation


def data_name(params: ElsaDenseParams, task: Task) -> str:
    """What the column `data` of the results says."""
    if section_of(params, task).data.kind == "scenes":
        return "scenes"
    return "coco" if task == "detection" else "ade20k"


def key_of(params: ElsaDenseParams, task: Task, mixer: MixerName, seed: int) -> str:
    """The run's `run_id` in the results and its tag in MLflow."""
    setting = [params.trunk.model_dump(), section_of(params, task).model_dump(), params.pretrained]
    return run_key("elsa-dense", params.scale, task, mixer, seed, setting)


def run_log(params: ElsaDenseParams, task: Task, mixer: MixerName, seed: int) -> RunLog:
    """The MLflow run of one training."""
    section = section_of(params, task)
    return RunLog(
        paper="elsa-dense",
        name=f"{task} {mixer} seed {seed}",
        key=key_of(params, task, mixer, seed),
        params={
            "task": task,
            "method": mixer,
            "seed": seed,
            **params.trunk.model_dump(),
            **section.model_dump(exclude={"data", "recipe"}),
            **section.recipe.model_dump(),
        },
        tags={"scale": params.scale, "data": data_name(params, task), "method": mixer},
    )
