"""Parameters that the dense-task pipelines share: where images come from, and how a network is trained on them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stages.common.dense.scenes import Look
from stages.common.stage.params import Fraction, Section

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class SceneStyle(Section):
    """What generated scenes look like."""

    size: Annotated[int, Field(ge=32)]  # side, pixels
    objects: Annotated[list[Count], Field(min_length=2, max_length=2)]  # in a scene, from .. to
    look: Look

    @model_validator(mode="after")
    def _from_to(self) -> "SceneStyle":
        if self.objects[0] > self.objects[1]:
            raise ValueError("objects: the first number must not exceed the second")
        return self


class DenseData(Section):
    """Generated scenes, or a folder laid out like the data set of the paper."""

    kind: Literal["scenes", "folder"]
    root: str | None  # the folder; COCO's or ADE20K's layout, see `coco.py` and `semantic.py`
    train_images: Count | None  # null is all of them
    val_images: Count | None
    scenes: SceneStyle | None

    @model_validator(mode="after")
    def _complete(self) -> "DenseData":
        if self.kind == "scenes" and None in (self.scenes, self.train_images, self.val_images):
            raise ValueError("kind 'scenes' needs scenes, train_images and val_images")
        return self


class Recipe(Section):
    """One schedule, the same for every row of a table."""

    steps: Count
    batch: Count  # images, over all processes
    optimizer: Literal["adamw", "sgd"]  # sgd: momentum 0.9
    lr: Positive  # peak
    weight_decay: NonNegative  # of matrices and filters, not of vectors
    schedule: Literal["cosine", "steps", "linear"]  # down to zero; "steps": to a tenth at each of `drops`
    drops: list[Fraction]  # shares of the steps
    warmup: Annotated[int, Field(ge=0)]  # steps of linear warm-up
    clip: Positive | None  # of the gradient's norm
    precision: Literal["float32", "bfloat16"]
    workers: Annotated[int, Field(ge=0)]  # processes that read images

    @model_validator(mode="after")
    def _drops_go_with_steps(self) -> "Recipe":
        if bool(self.drops) != (self.schedule == "steps"):
            raise ValueError("drops: needed for the schedule 'steps', and only for it")
        return self
