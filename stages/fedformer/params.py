"""Parameters of the FEDformer pipeline (`conf/fedformer/*.yaml`)."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.common.stage.params import Scale, Section, Seeds

DataName = Literal[
    "generated", "ili", "exchange", "etth1", "etth2", "ettm1", "ettm2", "weather", "electricity", "traffic"
]
ModelName = Literal[
    "fedformer-f", "fedformer-f-paper", "fedformer-w", "fedformer-w-paper", "autoformer", "informer",
    "transformer", "dlinear", "nlinear", "repeat-last",
]  # fmt: skip
VariationName = Literal[
    "M2-random", "M2-low", "M4-random", "M4-low", "M8-random", "M8-low", "M16-random", "M16-low",
    "M32-random", "M32-low", "mixture", "softmax", "V1", "V2", "V3",
]  # fmt: skip
Features = Literal["M", "S"]  # all variates, or the target alone
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Wavelet(Section):
    """Sizes of the multiwavelet blocks: card, "FEB-w" and "FEA-w"."""

    polynomials: Count
    self_channels: Count
    cross_channels: Count
    alpha: Count  # modes per level
    skipped: Annotated[int, Field(ge=0)]  # coarse levels that FEB-w leaves out


class Recipe(Section):
    """How models are trained on one data set: card, "Training and evaluation"."""

    seq_len: Annotated[int, Field(ge=4)]
    label_len: Count
    features: Annotated[list[Features], Field(min_length=1)]
    models: dict[ModelName, list[Count]]  # with the horizons of each
    variations: list[VariationName]  # of the FEDformers with Fourier blocks, in the ablation tables
    width: Count
    heads: Count
    hidden: Count  # of the feed-forward
    modes: Count
    kernels: Annotated[list[Count], Field(min_length=1)]  # of the moving averages; several are a mixture
    wavelet: Wavelet
    batch: Count  # over all processes
    epochs: Count
    patience: Count  # epochs without a better validation loss before training stops
    train_windows: Count | None  # per epoch, drawn anew; null takes all
    lr: Positive  # of the first two epochs, then halved each
    spectral_lr: Positive  # of the complex weights, as a multiple of lr
    linear_lr: Positive  # of the linear models


class FedformerParams(Section):
    """The section `fedformer` of params.yaml."""

    scale: Scale
    launch: Literal["python", "torchrun --nproc-per-node=gpu"]  # how training stages start
    seeds: Seeds
    # those that are trained, one DVC stage per model and seed; others that a data set names are left out
    models: Annotated[list[ModelName], Field(min_length=1)]
    data: Annotated[dict[DataName, Recipe], Field(min_length=1)]

    @model_validator(mode="after")
    def _models_and_data_agree(self) -> "FedformerParams":
        named = {model for recipe in self.data.values() for model in recipe.models} - {"repeat-last"}
        if missing := set(self.models) - named:
            raise ValueError(f"models that no data set names: {', '.join(sorted(missing))}")
        for name, recipe in self.data.items():
            for model in set(recipe.models) - {*self.models, "repeat-last"}:
                del recipe.models[model]
            if recipe.width % recipe.heads:
                raise ValueError(
                    f"data.{name}: width {recipe.width} is not a multiple of {recipe.heads} heads"
                )
            if recipe.label_len > recipe.seq_len:
                raise ValueError(
                    f"data.{name}: label_len {recipe.label_len} is above seq_len {recipe.seq_len}"
                )
        return self
