"""Parameters of the ZenDet pipeline (`conf/zendet/*.yaml`)."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from stages.common.dense.params import Count, DenseData, Recipe
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
    """Neck and heads, and the sizes that images are brought to."""

    channels: Count
    convs: Count  # of a branch; RetinaNet always has four
    levels: Annotated[int, Field(ge=3, le=5)]  # from P3 on
    groups: Count  # of group norm
    sizes: Annotated[
        list[Side], Field(min_length=1)
    ]  # short sides; one is drawn per image, the last is the test's
    longest: Count  # bound of the long side, pixels
    zero_residual: bool  # the last norm of every residual branch starts at 0


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
    data: DenseData
    heads: Annotated[list[HeadName], Field(min_length=1), AfterValidator(distinct)]
    detector: Detector
    train: Recipe  # of every head

    @model_validator(mode="after")
    def _consistent(self) -> "ZendetParams":
        for backbone in self.backbones:
            if backbone not in self.strategies:
                raise ValueError(f"backbones: {backbone!r} must be among strategies")
        if "entropy" not in self.strategies:
            raise ValueError("strategies: 'entropy' is the method and must be there")
        if self.detector.channels % self.detector.groups:
            raise ValueError("detector.groups: must divide detector.channels")
        if self.data.scenes is not None and self.data.scenes.size != self.image_size:
            raise ValueError("data.scenes.size: must be image_size, at which backbones are searched")
        return self
