"""Parameters of the UOT pipeline (`conf/uot/*.yaml`)."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from stages.common.stage.params import Scale, Section, Seeds, distinct

PretrainName = Literal["merged", "fine", "supervised", "moco"]
TargetName = Literal["concepts", "CUB", "cars", "dogs", "aircraft", "pets", "DTD", "caltech", "SUN"]
SelectionName = Literal[
    "none",
    "uot",
    "uot-1step",
    "nearest",
    "mean-cost",
    "greedy-ot",
    "balanced-ot",
    "round-robin",
    "random",
    "farthest",
    "all",
]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class Start(Section):
    """One pre-trained start and the fine-tuning that was tuned for it: card, "Step 5"."""

    net: Literal["mlp", "resnet18", "resnet50"]
    weights: str | None  # a released checkpoint; null pre-trains on the source here
    lr: Positive  # of the backbone in fine-tuning
    weight_decay: NonNegative
    source_weight: NonNegative  # lambda, of the mean source loss


class Pretrain(Section):
    """How a start without released weights is trained on the source."""

    epochs: Count
    batch: Count
    lr: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NonNegative


class Select(Section):
    """The transport problem and the size of a selection: card, "Step 2" to "Step 4"."""

    metric: Literal["cosine", "euclidean"]
    scale: Positive  # p_m
    eps: Positive
    tau_source: Positive
    tau_target: Positive
    k: Count


class Finetune(Section):
    """What every row of the tables has in common, and the sweeps around it."""

    length: Count
    unit: Literal["steps", "epochs"]  # an epoch is one pass over the target's training images
    batch: Count  # of the target, over all processes; as many source images come on top
    momentum: Annotated[float, Field(ge=0, lt=1)]
    head_ratio: Positive  # rate of the heads over that of the backbone
    l2_sp: Positive  # beta of the L2-SP row
    temperature: Positive  # of the unlabelled variant's pseudo-labels
    threshold: Annotated[float, Field(ge=0, lt=1)]
    precision: Literal["float32", "bfloat16"]
    fraction: Share  # of the target's training images, per class, in the main table
    fractions: list[Share]  # further ones, for the gain by target size
    k_sweep: list[Count]  # other sizes of the selection
    source_weights: list[NonNegative]  # other lambdas


class Theory(Section):
    """Trials per seed of the linear regression experiments."""

    trials: Count


class UotParams(Section):
    """The section `uot` of params.yaml."""

    scale: Scale
    launch: Literal["python", "torchrun --nproc-per-node=gpu"]  # how training stages start
    seeds: Seeds
    selections: Annotated[list[SelectionName], Field(min_length=1), AfterValidator(distinct)]
    targets: Annotated[list[TargetName], Field(min_length=1), AfterValidator(distinct)]
    image_root: (
        str | None
    )  # has `imagenet/train/<wnid>/*` and `<target>/{train,val}/<class>/*`; null where generated
    pretraining: Annotated[dict[PretrainName, Start], Field(min_length=1)]
    pretrain: Pretrain
    select: Select
    finetune: Finetune
    theory: Theory

    @model_validator(mode="after")
    def _consistent(self) -> "UotParams":
        generated = self.targets == ["concepts"]
        if "concepts" in self.targets and not generated:
            raise ValueError("targets: 'concepts' is generated and stands alone")
        for name, start in self.pretraining.items():
            if (start.net == "mlp") != generated:
                raise ValueError(f"pretraining.{name}.net: mlp is for the target 'concepts', and only for it")
            if name in ("supervised", "moco") and start.weights is None:
                raise ValueError(f"pretraining.{name}.weights: give the file of the released checkpoint")
            if name in ("merged", "fine") and not generated:
                raise ValueError(f"pretraining.{name}: only for the target 'concepts'")
        return self
