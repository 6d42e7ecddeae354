"""Parameters of the CHEX pipeline on detectors (`conf/chex-detection/*.yaml`)."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from stages.chex.params import Count, Positive, Prune
from stages.common.dense.params import DenseData, Recipe
from stages.common.stage.params import Scale, Section, Seeds, distinct

DetectorName = Literal["ssd", "mask-rcnn"]
NetName = Literal["quick", "resnet50"]
MethodName = Literal["uniform", "l1", "chex", "chex-no-regrow", "chex-uniform-random"]


class Detector(Section):
    """How one detector is trained and pruned."""

    net: NetName  # the body's widths and, with them, the heads': `networks.py`
    recipe: Recipe
    finetune_lr: Positive  # peak of the second half of the prune-after-training rows
    augment: Literal["flip", "ssd"]  # ssd: crop, colours and flip
    prune: Prune


class DetectionParams(Section):
    """The section `chex-detection` of params.yaml."""

    scale: Scale
    launch: Literal["python", "torchrun --nproc-per-node=gpu"]  # how training stages start
    seeds: Seeds
    methods: Annotated[list[MethodName], Field(min_length=1), AfterValidator(distinct)]
    data: DenseData
    classes: Count  # of the data set: 6 in scenes, 80 in COCO
    detectors: Annotated[dict[DetectorName, Detector], Field(min_length=1)]

    @model_validator(mode="after")
    def _scenes_have_six_classes(self) -> "DetectionParams":
        if self.data.kind == "scenes" and self.classes != 6:
            raise ValueError("classes: scenes have 6")
        return self
