"""Parameters of the CHEX pipeline on point clouds (`conf/chex-points/*.yaml`)."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from stages.chex.params import Count, NonNegative, Positive, Prune
from stages.common.stage.params import Scale, Section, Seeds, distinct

MethodName = Literal["uniform", "l1", "bn", "chex", "chex-no-regrow", "chex-no-realloc", "chex-wide-l1"]

CloudsName = Literal["solids", "modelnet10", "modelnet40"]


class Data(Section):
    """Which clouds, and how many points of each."""

    name: CloudsName
    root: str | None  # folder of ModelNet10 (meshes) or ModelNet40 (HDF5), see `modelnet.py`
    points: Annotated[int, Field(ge=8)]

    @model_validator(mode="after")
    def _root_goes_with_modelnet(self) -> "Data":
        if self.root is not None and self.name == "solids":
            raise ValueError("root: solids are generated; only modelnet10 and modelnet40 have a folder")
        return self


class Net(Section):
    """PointNet's widths."""

    shared: Annotated[list[Count], Field(min_length=1)]  # of the layers on points
    hidden: Annotated[list[Count], Field(min_length=1)]  # of the layers after the maximum
    dropout: Annotated[float, Field(ge=0, lt=1)]
    transform: bool  # a T-net on the coordinates
    norm_scale: Positive  # first value of every norm's scale


class Recipe(Section):
    """How every row is trained: AdamW, a cosine to zero."""

    steps: Annotated[int, Field(ge=4)]  # optimizer steps of every row, whatever its method
    batch: Annotated[int, Field(ge=2)]
    lr: Positive
    finetune_lr: Positive  # of the second half of the prune-after-training rows
    weight_decay: NonNegative
    augment: Literal[
        "none", "turn-jitter"
    ]  # PointNet's: turned about the vertical axis, points moved a little


class PointsParams(Section):
    """The section `chex-points` of params.yaml."""

    scale: Scale
    seeds: Seeds
    methods: Annotated[list[MethodName], Field(min_length=1), AfterValidator(distinct)]
    data: Data
    net: Net
    recipe: Recipe
    prune: Prune
