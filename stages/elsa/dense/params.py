"""Parameters of ELSA's dense tasks (`conf/elsa-dense/*.yaml`)."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from stages.common.dense.params import Count, DenseData, Positive, Recipe
from stages.common.stage.params import Scale, Section, Seeds, distinct
from stages.elsa.params import MixerName, Trunk

Task = Literal["detection", "segmentation"]
Rate = Annotated[float, Field(ge=0, lt=1)]


class Detection(Section):
    """Mask R-CNN: sizes as `MaskRCNNConfig` has them, and its training."""

    data: DenseData
    recipe: Recipe
    augment: Literal["flip", "coco"]
    drop_path: Rate
    channels: Count
    anchor_scale: Positive
    box_features: Count
    mask_channels: Annotated[list[Count], Field(min_length=1)]
    proposals: Annotated[int, Field(ge=2)]
    regions: Count
    detections: Count
    sizes: Annotated[list[Count], Field(min_length=1)]
    longest: Count


class Segmentation(Section):
    """UPerNet: sizes as `UPerNetConfig` has them, and its training."""

    data: DenseData
    classes: Annotated[int, Field(ge=2)]
    recipe: Recipe
    augment: Literal["flip", "ade20k"]
    crop: Count | None  # side of the training crops of "ade20k"
    drop_path: Rate
    channels: Count
    pools: Annotated[list[Count], Field(min_length=1)]
    auxiliary_channels: Count
    ratios: Annotated[
        list[Positive], Field(min_length=1)
    ]  # of the test at several scales, with mirror images

    @model_validator(mode="after")
    def _crop_goes_with_ade20k(self) -> "Segmentation":
        if (self.crop is None) == (self.augment == "ade20k"):
            raise ValueError("crop: needed for augment 'ade20k', and only for it")
        return self


class ElsaDenseParams(Section):
    """The section `elsa-dense` of params.yaml."""

    scale: Scale
    launch: Literal["python", "torchrun --nproc-per-node=gpu"]  # how training stages start
    seeds: Seeds
    mixers: Annotated[list[MixerName], Field(min_length=1), AfterValidator(distinct)]
    pretrained: str | None  # folder with <mixer>-<seed>/<mixer>.safetensors, as elsa-pretrain leaves it
    trunk: Trunk
    detection: Detection
    segmentation: Segmentation
