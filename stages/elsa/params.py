"""Parameters of the ELSA pipeline (`conf/elsa/*.yaml`)."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from stages.common.stage.params import Scale, Section, Seeds, distinct

DataName = Literal["textures", "new-textures", "cifar10", "digits", "folder"]
MethodName = Literal[
    "window",
    "window-no-bias",
    "window-all-terms",
    "neighborhood",
    "neighborhood-all-terms",
    "depthwise",
    "filter-norm",
    "filter-softmax",
    "involution",
    "ddf-mul",
    "ddf-add",
    "hadamard",
    "elsa",
    "elsa-mul",
    "elsa-mul-add",
]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class Trunk(Section):
    """The network that all rows share; mixers differ in every stage but the last."""

    img_size: Count
    patch_size: Count
    embed_dim: Count
    depths: Annotated[list[Count], Field(min_length=2)]
    num_heads: Annotated[list[Count], Field(min_length=2)]
    window_size: Count  # and kernel of every sliding mixer
    mlp_ratio: Positive
    group_width: Count  # of ELSA's k x k convolution
    drop_path: Rate

    @model_validator(mode="after")
    def _consistent(self) -> "Trunk":
        if len(self.depths) != len(self.num_heads):
            raise ValueError(f"depths {self.depths} and num_heads {self.num_heads}: must be equally many")
        if self.window_size % 2 == 0:
            raise ValueError(f"window_size {self.window_size}: must be odd")
        for stage, heads in enumerate(self.num_heads):
            if self.embed_dim * 2**stage % heads:
                raise ValueError(f"num_heads {heads}: must divide {self.embed_dim * 2**stage} channels")
        return self


class Recipe(Section):
    """One training: AdamW, warm-up, cosine."""

    data: DataName
    folder: str | None  # of the data `folder`: {train,val}/<class>/*
    epochs: Count
    batch: Count  # over all processes
    lr: Positive
    min_lr: NonNegative
    warmup: NonNegative  # epochs, of `epochs`
    weight_decay: NonNegative
    clip: Positive  # gradient norm
    smoothing: Rate
    augment: Literal["none", "crop-flip", "imagenet"]
    mixup: bool  # mixup .8 and cutmix 1, switched at random (timm)
    precision: Literal["float32", "bfloat16"]

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if (self.data == "folder") != (self.augment == "imagenet"):
            raise ValueError("augment 'imagenet' is for data 'folder', and the only one for it")
        return self


class ElsaParams(Section):
    """The section `elsa` of params.yaml."""

    scale: Scale
    launch: Literal["python", "torchrun --nproc-per-node=gpu"]  # how training stages start
    seeds: Seeds
    methods: Annotated[list[MethodName], Field(min_length=1), AfterValidator(distinct)]
    heads: list[Positive]  # further head counts of `window` and `elsa`, as factors of num_heads
    trunk: Trunk
    pretrain: Recipe
    finetune: Recipe

    @model_validator(mode="after")
    def _consistent(self) -> "ElsaParams":
        for factor in self.heads:
            for number in self.trunk.num_heads:
                if round(factor * number, 6) != int(factor * number) or factor == 1:
                    raise ValueError(f"heads {factor}: must be other than 1 and give whole numbers of heads")
        return self
