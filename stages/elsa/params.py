"""Parameters of the ELSA pipeline (`conf/elsa/*.yaml`)."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from stages.common.stage.params import Scale, Section, Seeds, distinct

DataName = Literal["textures", "textures-turned", "cifar10", "imagenet"]
MixerName = Literal["window", "neighborhood", "depthwise", "dynamic", "ddf", "involution", "elsa"]
AblationName = Literal[
    "window-no-bias", "window-terms", "window-1-head", "window-2x-heads", "neighborhood-terms",
    "dynamic-filter-norm", "ddf-add", "elsa-no-ghost", "elsa-mul", "elsa-mul-add", "elsa-1-head", "elsa-2x-heads",
]  # fmt: skip
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Trunk(Section):
    """The Swin trunk that all rows share; the last stage keeps window attention in each of them."""

    patch_size: Count
    embed_dim: Count
    depths: Annotated[list[Count], Field(min_length=2)]
    num_heads: Annotated[list[Count], Field(min_length=2)]  # "1x"; a variant may have others
    window_size: Count  # and kernel size
    group_width: Count  # of ELSA's k x k convolution
    mlp_ratio: Positive
    init_std: Positive | None  # of linear layers' weights; null is 1 / sqrt(inputs)

    @model_validator(mode="after")
    def _consistent(self) -> "Trunk":
        if len(self.depths) != len(self.num_heads):
            raise ValueError("num_heads: as many as depths")
        if self.window_size % 2 == 0:
            raise ValueError("window_size: must be odd, it is the kernel size too")
        for stage, heads in enumerate(self.num_heads):
            if self.embed_dim * 2**stage % (2 * heads):  # the head sweep doubles them
                raise ValueError(f"num_heads: twice {heads} must divide {self.embed_dim * 2**stage} channels")
        return self


class Recipe(Section):
    """How networks are trained on one data set: card, "Training recipes"."""

    data: DataName
    steps: Count
    batch: Count  # over all processes
    lr: Positive  # peak
    min_lr: NonNegative
    warmup: Annotated[int, Field(ge=0)]  # steps of linear warm-up, before a cosine to min_lr
    weight_decay: NonNegative  # of matrices and filters, not of vectors
    clip: Positive  # of the gradient's norm
    drop_path: Annotated[float, Field(ge=0, lt=1)]
    smoothing: Annotated[float, Field(ge=0, lt=1)]
    mixup: NonNegative  # alpha, 0 for none; cutmix takes turns with it where it is on
    augment: Literal["none", "crop-flip", "imagenet"]
    precision: Literal["float32", "bfloat16"]


class ElsaParams(Section):
    """The section `elsa` of params.yaml."""

    scale: Scale
    launch: Literal["python", "torchrun --nproc-per-node=gpu"]  # how training stages start
    seeds: Seeds
    mixers: Annotated[list[MixerName], Field(min_length=1), AfterValidator(distinct)]
    ablations: Annotated[list[AblationName], AfterValidator(distinct)]  # rows beside the mixers' own
    image_folder: str | None  # ImageNet as `train/<wnid>/*.JPEG`, `val/<wnid>/*`; needed where it is named
    trunk: Trunk
    pretrain: Recipe
    finetune: Recipe | None  # of the main rows, on a second data set
