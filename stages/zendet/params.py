"""Parameters of the ZenDet pipeline (`conf/zendet/*.yaml`)."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from stages.common.stage.params import Scale, Section, Seeds, distinct

Strategy = Literal[
    "resnet",  # the reference itself; this one and the published ones are not searched
    "MAE-DET-S",
    "MAE-DET-M",
    "MAE-DET-L",
    "entropy",
    "min-entropy",
    "random",
    "zen",
    "flops",
    "params",
]
HeadName = Literal["fcos", "retinanet", "gfl"]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Side = Annotated[int, Field(ge=32, multiple_of=32)]


class Reference(Section):
    """A ResNet in this encoding; its FLOPs and layers are the budget of every other backbone."""

    stem: Count
    mids: list[Count]
    depths: list[Count]

    @model_validator(mode="after")
    def _four_stages(self) -> "Reference":
        if len(self.mids) != 4 or len(self.depths) != 4:
            raise ValueError("mids and depths must have one value for each of the four stages C2 .. C5")
        return self


class Search(Section):
    """The searches at the reference's budget, and those at the authors' own setting."""

    rules: Literal["2022", "2023"]
    population: Count
    evaluations: Count
    zen_evaluations: Count  # Zen-score runs the network: it affords fewer
    islands: Count
    official_evaluations: Count
    official_seeds: Seeds
    latency_table: str | None  # the authors' `conv_data.out.fp16` (V100); null does without


class ScoreCheck(Section):
    """Random structures on which the ways to the entropy score are compared."""

    structures: Annotated[int, Field(ge=3)]
    sizes: Annotated[list[Side], Field(min_length=1), AfterValidator(distinct)]
    batch: Count
    repeats: Count


class Detector(Section):
    """Neck and heads."""

    channels: Count
    convs: Count  # of a branch; RetinaNet always has four
    levels: Annotated[int, Field(ge=3, le=5)]
    groups: Count


class Train(Section):
    """One schedule for all backbones."""

    length: Annotated[dict[HeadName, Count], Field(min_length=1)]  # which heads, and how long
    unit: Literal["steps", "epochs"]
    batch: Count  # over all processes
    optimizer: Literal["adamw", "sgd"]
    lr: Positive
    weight_decay: NonNegative
    schedule: Literal["cosine", "steps"]  # "steps": a tenth after 65/73 and 71/73 of the epochs
    warmup: Annotated[int, Field(ge=0)]  # iterations, linear from a tenth
    sizes: list[Side]  # short sides; one is drawn per image, the last one is the test's
    longest: Side
    zero_residual: bool
    precision: Literal["float32", "bfloat16"]
    workers: Annotated[int, Field(ge=0)]  # that read images


class Data(Section):
    """Scenes that are generated, or COCO on disk."""

    kind: Literal["scenes", "coco"]
    coco_root: str | None  # has train2017/, val2017/ and annotations/instances_*.json
    train_images: Count | None  # null is all of them
    val_images: Count | None


class ZendetParams(Section):
    """The section `zendet` of params.yaml."""

    scale: Scale
    launch: Literal["python", "torchrun --nproc-per-node=gpu"]  # how training stages start
    seeds: Seeds
    image_size: Side  # that backbones are searched and counted at
    reference: Reference
    strategies: Annotated[list[Strategy], Field(min_length=1), AfterValidator(distinct)]
    backbones: Annotated[list[Strategy], Field(min_length=1), AfterValidator(distinct)]  # that are trained
    search: Search
    score_check: ScoreCheck
    data: Data
    detector: Detector
    train: Train

    @model_validator(mode="after")
    def _consistent(self) -> "ZendetParams":
        for backbone in self.backbones:
            if backbone not in self.strategies:
                raise ValueError(f"backbones: {backbone!r} must be among strategies")
        if "entropy" not in self.strategies:
            raise ValueError("strategies: 'entropy' is the method and must be there")
        if self.detector.channels % self.detector.groups:
            raise ValueError("detector.groups: must divide detector.channels")
        if self.data.kind == "scenes" and None in (self.data.train_images, self.data.val_images):
            raise ValueError("data: scenes need train_images and val_images")
        return self
