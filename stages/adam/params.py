"""Parameters of the Adam family's pipeline (`conf/adam/*.yaml`); constants of the experiments stand beside their code."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from stages.common.stage.params import Scale, Section, Seeds

MemberName = Literal[
    "sgdm", "adam", "amsgrad", "adafom", "adam_plus", "adabound", "rmsprop", "adagrad"
]  # fmt: skip
Cifar10Method = Literal["sgd", "adagrad", "adam", "amsgrad", "adabound", "amsbound", "family-increasing"]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]


def _increasing(values: list[int]) -> list[int]:
    if sorted(set(values)) != values:
        raise ValueError(f"{values} does not increase")
    return values


# slopes need two points, and the comparison of first and last ones three each would be best
Horizons = Annotated[list[Annotated[int, Field(ge=4)]], Field(min_length=2), AfterValidator(_increasing)]


class Rate(Section):
    """E1 to E3: rates, bounds and the first moment's error on the quadratic-plus-dip problem."""

    members: Annotated[list[MemberName], Field(min_length=1)]
    horizons: Horizons  # T
    gammas: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2)]
    variance_steps: Annotated[int, Field(ge=4)]


class Skewed(Section):
    """E4: floors under skewed noise."""

    steps: Annotated[int, Field(ge=4)]
    betas: Annotated[list[Beta], Field(min_length=1)]
    etas: Annotated[list[Positive], Field(min_length=2, max_length=2)]  # a larger and a smaller one


class Counterexamples(Section):
    """E5: linear problems on which a small beta walks the wrong way."""

    steps: Annotated[int, Field(ge=4)]
    walks: Count  # of each seed
    betas: Annotated[list[Beta], Field(min_length=1)]
    cycle_steps: Annotated[int, Field(ge=0)]  # of the 101-cycle and its stochastic version; 0 leaves them out
    cycle_betas: Annotated[list[Beta], Field(min_length=1)]


class Digits(Section):
    """E6: a small network on digits."""

    seeds: Seeds
    steps: Annotated[int, Field(ge=100)]
    members: Annotated[list[MemberName], Field(min_length=1)]


class MinMax(Section):
    """E7: min-max problems."""

    horizons: Horizons
    auc_steps: Annotated[int, Field(ge=100)]


class Compositional(Section):
    """E8: compositional problems."""

    horizons: Horizons


class Bilevel(Section):
    """E9: bilevel problems."""

    horizons: Horizons
    terms: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]  # K of the Neumann series
    cleaning_seeds: Seeds
    cleaning_steps: Annotated[int, Field(ge=4)]


class Cifar10(Section):
    """ResNet-34 on CIFAR-10 beside the AdaBound repository's curves."""

    seeds: Seeds
    methods: Annotated[list[Cifar10Method], Field(min_length=1)]
    net: Literal["resnet18", "resnet34"]
    epochs: Annotated[int, Field(ge=4)]
    batch: Count  # over all processes
    weight_decay: Annotated[float, Field(ge=0)]  # part of the gradient
    precision: Literal["float32", "bfloat16"]


class AdamParams(Section):
    """The section `adam` of params.yaml."""

    scale: Scale
    launch: Literal["python", "torchrun --nproc-per-node=gpu"]  # how the CIFAR-10 stage starts
    seeds: Seeds  # of all experiments that do not name their own
    rate: Rate
    skewed: Skewed
    counterexamples: Counterexamples
    digits: Digits
    minmax: MinMax
    compositional: Compositional
    bilevel: Bilevel
    cifar10: Cifar10 | None
