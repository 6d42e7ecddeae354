"""Parameters of the Entroformer pipeline (`conf/entroformer/*.yaml`)."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from stages.common.stage.params import Scale, Section, Seeds, distinct

Family = Literal["cnn", "entroformer", "ablation"]
MethodName = Literal[
    "cnn-hyper",
    "cnn-context",
    "cnn-serial",
    "cnn-two-pass",
    "ent-hyper",
    "ent-context",
    "ent-serial",
    "ent-two-pass",
    "context-no-position",
    "context-absolute",
    "context-square",
    "context-dense",
    "context-head-scale",
    "context-mixtures",
    "serial-deep-prior",
]
TrackName = Literal["latents", "codec"]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class Data(Section):
    """Training pictures and what rates are measured on."""

    source: Literal["dead-leaves", "photographs"]  # photographs: BSDS500 to train, Kodak to test
    train: Count  # pictures to train on
    test_crops: Count  # squares of `crop` pixels, for rates of the fixed latents
    crop: Annotated[int, Field(ge=32, multiple_of=32)]
    test_pictures: Count  # whole pictures, for files


class Track(Section):
    """One kind of latents, and the entropy models that are trained on them.

    Track "latents": a fixed DCT, so that rates compare at equal distortion. Track "codec": learned transforms.
    """

    transform: Literal["dct", "conv"]
    channels: Annotated[int, Field(ge=0)]  # of the convolutional transforms
    latents: Count
    hyper_channels: Count
    dim: Count
    depth: Count
    heads: Count
    dim_head: Count
    mlp_ratio: Count
    position_num: Annotated[int, Field(ge=3)]
    topk: Annotated[int, Field(ge=-1)]
    methods: Annotated[list[MethodName], Field(min_length=1), AfterValidator(distinct)]
    pretrain_lambda: Annotated[float, Field(ge=0)]
    lambdas: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1), AfterValidator(distinct)]
    pretrain_steps: Count  # with random masks
    steps: Count  # afterwards; methods that do not start from the pre-training get both
    batch: Count
    lr: Positive
    crop: Annotated[int, Field(ge=32, multiple_of=32)]

    @model_validator(mode="after")
    def _consistent(self) -> "Track":
        if self.transform == "dct" and self.lambdas != [0.0]:
            raise ValueError("lambdas: a fixed transform has no trade-off; give [0.0]")
        if self.transform == "conv" and (self.crop % 64 or self.channels == 0 or 0.0 in self.lambdas):
            raise ValueError(
                "crop, channels, lambdas: a conv track needs crops of a multiple of 64, channels and lambdas > 0"
            )
        if self.position_num % 2 == 0:
            raise ValueError("position_num: must be odd")
        return self


class EntroformerParams(Section):
    """The section `entroformer` of params.yaml."""

    scale: Scale
    launch: Literal["python", "torchrun --nproc-per-node=gpu"]  # how training stages start
    seeds: Seeds
    families: Annotated[list[Family], Field(min_length=1), AfterValidator(distinct)]
    data: Data
    tracks: Annotated[dict[TrackName, Track], Field(min_length=1)]
    topk_sweep: list[int]  # k at inference, of the trained serial context
    qualities: list[Annotated[int, Field(ge=1, le=100)]]  # of the anchor codecs
