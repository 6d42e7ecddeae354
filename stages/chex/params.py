"""Parameters of the CHEX pipeline (`conf/chex/*.yaml`)."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from stages.common.stage.params import Fractions, Scale, Section, Seeds, distinct

DataName = Literal["shapes", "digits", "cifar10", "imagenet"]
MethodName = Literal[
    "uniform",
    "random",
    "l1",
    "bn",
    "chex",
    "chex-prune-once",
    "chex-no-regrow",
    "chex-random-regrow",
    "chex-no-realloc",
]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Recipe(Section):
    """How networks are trained on one data set: card, "Classification recipe"."""

    net: Literal["quick", "resnet20", "resnet56", "resnet18", "resnet34", "resnet50", "resnet101"]
    steps: Annotated[int, Field(ge=4)]  # optimizer steps of every row, whatever its method
    batch: Count  # over all processes
    lr: Positive  # peak, after the warm-up
    finetune_lr: Positive  # peak of the second half of the prune-after-training rows
    warmup: Annotated[int, Field(ge=0)]  # steps of linear warm-up, before a cosine to zero
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NonNegative
    smoothing: Annotated[float, Field(ge=0, lt=1)]
    mixup: NonNegative  # alpha of the Beta distribution; 0 trains without mixup
    augment: Literal["none", "crop-flip", "imagenet"]
    precision: Literal["float32", "bfloat16"]


class Prune(Section):
    """The pruning schedule: card, "Method" 1-3."""

    flops: Fractions  # targets: multiply-accumulates left, as a fraction of the dense network's
    explore: Annotated[float, Field(gt=0, le=1)]  # T_max, as a fraction of the training
    period: Annotated[float, Field(gt=0, le=1)]  # dT, likewise
    residual_power: Literal[
        1, 2
    ]  # regrow by the projection residual (1, the released code) or its square (2)


class ChexParams(Section):
    """The section `chex` of params.yaml."""

    scale: Scale
    launch: Literal[
        "python", "torchrun --nproc-per-node=gpu"
    ]  # how training stages start: one process, or one per GPU
    seeds: Seeds
    methods: Annotated[list[MethodName], Field(min_length=1), AfterValidator(distinct)]
    data: Annotated[dict[DataName, Recipe], Field(min_length=1)]
    image_folder: (
        str | None
    )  # ImageNet as `train/<wnid>/*.JPEG`, `val/<wnid>/*`; needed where `data` names it
    prune: Prune
